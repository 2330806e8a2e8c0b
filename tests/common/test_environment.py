"""What a record says of its machine, and which errors mean that memory is short."""

import json
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mu_sota.common import environment
from mu_sota.common.environment import describe, is_out_of_memory, peak_memory, version


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder, as if it were installed in an empty folder."""
    package = tmp_path / "mu_sota"
    (package / "common").mkdir(parents=True)
    (package / "common" / "environment.py").touch()
    monkeypatch.setattr(environment, "__file__", str(package / "common" / "environment.py"))
    return package


@pytest.fixture
def checkout(installed: Path) -> Path:
    """The package's folder in a git repository with one commit."""
    git(installed.parent, "init", "--quiet")
    git(installed.parent, "add", ".")
    git(installed.parent, "commit", "--quiet", "--message", "one")
    return installed


def test_description_has_the_keys_of_a_record_and_goes_into_json() -> None:
    described = describe()
    assert list(described) == [
        *("python", "versions", "commit", "platform", "processor"),
        *("kernels", "cores", "threads", "memory_gib", "gpus"),
    ]
    assert described["versions"]["torch"] == metadata.version("torch")
    assert described["threads"] == torch.get_num_threads()
    assert described["kernels"] in ("compiled", "PyTorch", "Triton")
    assert described["cores"] >= 1
    assert 0 < described["memory_gib"] < 2**20
    assert json.loads(json.dumps(described)) == described


def test_commit_is_that_of_the_checkout(checkout: Path) -> None:
    assert describe()["commit"] == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("change", ["changed", "new"])
def test_commit_is_dirty_where_a_file_of_the_package_differs(checkout: Path, change: str) -> None:
    (checkout / {"changed": "common/environment.py", "new": "another.py"}[change]).write_text("x = 1\n")
    assert describe()["commit"] == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_commit_is_clean_where_only_files_beside_the_package_differ(checkout: Path) -> None:
    (checkout.parent / "notes.txt").touch()
    assert describe()["commit"] == git(checkout, "rev-parse", "HEAD")


def test_package_outside_of_git_has_no_commit(installed: Path) -> None:
    assert describe()["commit"] is None


def test_package_that_another_repository_ignores_has_no_commit(installed: Path) -> None:
    """As in a virtual environment within somebody's checkout."""
    git(installed.parent, "init", "--quiet")
    git(installed.parent, "commit", "--quiet", "--allow-empty", "--message", "one")
    assert describe()["commit"] is None


def test_machine_without_git_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert describe()["commit"] is None


def test_version_of_a_missing_package_is_none() -> None:
    assert version("torch") == metadata.version("torch")
    assert version("there-is-no-such-package") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's memory is counted here")
def test_peak_memory_is_between_the_memory_in_use_and_all_there_is() -> None:
    in_use = psutil.Process().memory_info().rss
    assert 0.9 * in_use <= peak_memory() < psutil.virtual_memory().total


def out_of_memory_of_torch() -> None:
    torch.empty(2**55)


def out_of_memory_of_numpy() -> None:
    np.empty(2**55)


def out_of_memory_of_python() -> None:
    bytearray(2**62)


def out_of_memory_of_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize(
    "provoke", [out_of_memory_of_torch, out_of_memory_of_numpy, out_of_memory_of_python, out_of_memory_of_cuda]
)
def test_errors_of_short_memory_are_told_apart(provoke: Callable[[], None]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        provoke()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("out of memory"), OSError(28, "full")]
)
def test_other_errors_are_not_of_short_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
