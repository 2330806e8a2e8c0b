"""What `make gpu-pack` packs, and how much of it."""

import sys
from pathlib import Path

import pytest

from mu_sota.model.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from gpu_pack import LIMIT, pinned, require_small, required, sizes, to_pack

PACKAGES = {
    "mu-sota": ["Torch>=2", "numpy", "datasets>=4", "Py_Dantic>=2 ; python_version < '4'", "sparse ; os_name == 'nt'"],
    "torch": ["jinja2", "nvidia-cuda ; platform_machine == 'aarch64'"],
    "transformers": ["numpy", "typer", "rich ; extra == 'more'"],
    "datasets": ["pyarrow", "pandas"],
    "py-dantic": ["core", "numpy", "backport ; python_version < '3.12'"],
    "core": ["py-dantic"],
    "pytest": ["rich"],
    "rich": ["jinja2"],
}


def test_what_is_not_there_is_packed_with_all_that_it_needs() -> None:
    """Not the machine's own, not what is left out and what that alone needs, nothing of other systems and Pythons."""
    packed = to_pack(lambda name: PACKAGES.get(name, ()), "3.12")
    assert packed == {"py-dantic", "core", "pytest", "rich", "hypothesis"}
    assert to_pack(lambda name: PACKAGES.get(name, ()), "3.11") == packed | {"backport"}


def test_what_this_checkout_packs_is_small_and_pinned() -> None:
    packed = to_pack(required, "3.12")
    assert {"accelerate", "lazy-loader", "platformdirs", "psutil", "pydantic-core", "pytest", "hypothesis"} <= packed
    assert not packed & {"torch", "numpy", "transformers", "datasets", "pyarrow", "pandas", "scipy", "matplotlib"}
    lock = (Path(__file__).parents[1] / "requirements.lock").read_text(encoding="utf-8")
    assert len(pinned(packed, lock, "3.12")) == len(packed) < 25


def test_releases_are_those_of_the_lock_for_the_machines_python() -> None:
    lock = (
        "# made\n"
        "Py_Dantic==2.1 ; python_full_version < '3.11'\n    # via x\n"
        "py-dantic==2.9 ; python_full_version >= '3.11'\n    # via x\n"
    )
    assert pinned({"py-dantic"}, lock, "3.12") == ["py-dantic==2.9"]
    assert pinned({"py-dantic"}, lock, "3.10") == ["Py_Dantic==2.1"]
    with pytest.raises(InputError, match=r"requirements\.lock lacks core: make lock"):
        pinned({"py-dantic", "core"}, lock, "3.12")


def test_sizes_are_those_of_all_files_below_and_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, size in {"a": 3, "deep/b": 10, "deep/er/c": 5}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert list(sizes(tmp_path).items()) == [("deep", 15), ("a", 3)]
    require_small(LIMIT)
    with pytest.raises(InputError, match=r"the pack has 61\.0 MiB, and 60 MiB can be carried: leave out"):
        require_small(LIMIT + 2**20)
