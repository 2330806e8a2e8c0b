"""Fill a folder with what `benchmarks/gpu.py` needs on a bare GPU machine beside the files of the repository.

    python benchmarks/gpu_pack.py --data wikitext-2 --out gpu-pack

That machine has Python, torch and transformers with what these need, and no network. The folder holds

* `site/`: our other packages, unpacked, in the releases of requirements.lock, for Linux on x86-64. It belongs at the
  end of `sys.path`, so that what the machine has comes first; mu-sota itself runs from `src/`;
* `wikitext-2/`: the tokens and the tokenizer of the preset `mu-sota`, as `mu-sota prepare` writes them;
* `wikitext-2-mu-base/`: the same for the preset `mu-base`;
* `wikitext-2-words/`: the same text in its own closed vocabulary of words, for figures that can be held against papers;
* `pack.json`: releases, fingerprint, sizes.

`make gpu-pack` calls it.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mu_sota.common import environment
from mu_sota.common.files import replacing, write_json
from mu_sota.data.corpus import load_corpus, save_corpus
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
THERE = ("torch", "transformers")
FOR_TESTS = ("pytest", "hypothesis")
LEFT_OUT = {
    "datasets": "reads the hub: the tokens are prepared",
    "pyarrow": "reads .parquet files: the tokens are prepared",
    "charset-normalizer": "finds out encodings: the tokens are prepared",
    "zstandard": "reads .zst files: the tokens are prepared",
    "matplotlib": "draws the figures of a comparison, which no GPU is needed for",
    "scipy": "judges a comparison, which no GPU is needed for",
    "tensorboard": "a tracker: runs are recorded without one",
}
LIMIT = 60 * 2**20

Requires = Callable[[str], Iterable[str]]


def requirements(lines: Iterable[str], python: str) -> list[Requirement]:
    """Those of the lines that count on Linux and x86-64 with a Python such as 3.12, without extras."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }

    def counts(marker: Marker | None) -> bool:
        return marker is None or marker.evaluate(machine)

    return [one for one in map(Requirement, lines) if counts(one.marker)]


def required(name: str) -> list[str]:
    """The requirements of an installed package, and those of mu-sota as its pyproject.toml has them."""
    if name != "mu-sota":
        return metadata.requires(name) or []
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])


def to_pack(requires: Requires, python: str) -> set[str]:
    """The names of all packages that mu-sota and its tests need and the machine cannot be counted on to have.

    It has torch, transformers, and what these two name. What those need in turn differs from release to release, so it
    is packed where we need it by another way, too.

    Args:
        requires: the requirements of a package, as lines.
        python: of the machine, such as 3.12.
    """

    def needs(name: str) -> set[str]:
        return {canonicalize_name(one.name) for one in requirements(requires(name), python)}

    found = set(THERE).union(LEFT_OUT, *map(needs, THERE))
    packed: set[str] = set()
    names: set[str] = {*needs("mu-sota"), *FOR_TESTS} - found
    while names:
        packed |= names
        names = set().union(*map(needs, names)) - found - packed
    return packed


def pinned(names: set[str], lock: str, python: str) -> list[str]:
    """The releases of packages in the text of a lock file, as name==release.

    Raises:
        InputError: it lacks one.
    """
    lines = [line for line in lock.splitlines() if line and line[0] not in " #"]
    found: dict[str, str] = {
        canonicalize_name(one.name): f"{one.name}{one.specifier}" for one in requirements(lines, python)
    }
    if lacking := sorted(names - found.keys()):
        raise InputError(f"requirements.lock lacks {', '.join(lacking)}: make lock, then pack again")
    return [found[name] for name in sorted(names)]


def unpack(releases: list[str], python: str, site: Path) -> None:
    """Unpack the wheels of releases into a folder.

    Raises:
        InputError: pip cannot get them; it has said why.
    """
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    options = ["-qq", "--no-deps", "--no-compile", "--only-binary=:all:", f"--target={site}"]
    options += ["--implementation=cp", f"--python-version={python}", *platforms]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *releases], check=False)
    if done.returncode:
        raise InputError(f"pip could not unpack the packages for Python {python}: mend what it says above")
    shutil.rmtree(site / "bin", ignore_errors=True)  # programs that begin with the path of this Python


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file and folder in a folder, the largest first."""

    def size(path: Path) -> int:
        return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())

    return dict(sorted(((path.name, size(path)) for path in folder.iterdir()), key=lambda item: -item[1]))


def require_small(total: int) -> None:
    """Refuse a pack that is too large to carry.

    Raises:
        InputError: it is.
    """
    if total > LIMIT:
        raise InputError(
            f"the pack has {total / 2**20:.1f} MiB, and {LIMIT >> 20} MiB can be carried: leave out a package "
            "(LEFT_OUT in benchmarks/gpu_pack.py) or give a smaller text"
        )


def pack(data: str, out: Path, python: str) -> None:
    """Write the folder and print its sizes.

    Raises:
        InputError: packages or text cannot be had, or the folder is too large.
    """
    releases = pinned(to_pack(required, python), (ROOT / "requirements.lock").read_text("utf-8"), python)
    run, model = load_settings("mu-sota")
    corpus = load_corpus(data, tokenizer=run.tokenizer, vocab_size=model.vocab_size)
    with replacing(out) as fresh:
        unpack(releases, python, fresh / "site")
        save_corpus(corpus, fresh / "wikitext-2")
        base_run, base_model = load_settings("mu-base")
        base = load_corpus(data, tokenizer=base_run.tokenizer, vocab_size=base_model.vocab_size)
        save_corpus(base, fresh / "wikitext-2-mu-base")
        save_corpus(load_corpus(data, tokenizer="word"), fresh / "wikitext-2-words")
        parts, packages = sizes(fresh), sizes(fresh / "site")
        total = sum(parts.values())
        require_small(total)
        record = {
            "what": "packages and tokens for benchmarks/gpu.py",
            "commit": environment.describe()["commit"],
            "python": python,
            "releases": releases,
            "data_fingerprint": corpus.fingerprint,
            "bytes": parts | {"total": total},
        }
        write_json(fresh / "pack.json", record)
    rows = {**parts, **{f"  site/{name}": size for name, size in packages.items() if size >= 2**19}, "total": total}
    for name, size in rows.items():
        print(f"{name:32} {size / 2**20:6.1f} MiB")
    print(f"{out} is ready for Python {python}: {len(releases)} packages, {len(corpus.train.tokens):,} training tokens")


def main() -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="wikitext-2", help="as in mu-sota train --data")
    parser.add_argument("--out", type=Path, default=Path("gpu-pack"), help="folder, which is replaced")
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    arguments = parser.parse_args()
    try:
        pack(arguments.data, arguments.out, arguments.python)
    except InputError as error:
        sys.exit(f"gpu_pack: {error}")


if __name__ == "__main__":
    main()
