"""Compiling the kernels: once, with whichever compiler there is, and doing without."""

import errno
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from kernel_checks import (
    NO_SEED,
    assert_near,
    doubled,
    feed_forward_inputs,
    full_attention,
    needs_kernels,
    plain_feed_forward,
    scaled_qkv,
)
from reference import small_model

from mu_sota.model import backend, kernel_library, kernels

SMALL_SOURCE = 'extern "C" int mu_answer() { return 42; }'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a cache without kernels, from which they are looked up anew; warnings go to caplog."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MU_SOTA_CACHE", str(folder))
    monkeypatch.delenv("MU_SOTA_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    kernels.library.cache_clear()
    yield folder
    kernels.library.cache_clear()


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of the kernels, one function that is compiled at once."""
    source = tmp_path / "small.cpp"
    source.write_text(SMALL_SOURCE)
    monkeypatch.setattr(kernels, "SOURCE", source)
    return source


def process_that_answers(source: Path, first: str = "") -> "subprocess.Popen[str]":
    """A process, in a group of its own, that compiles or loads the small source and prints what it answers."""
    code = f"""{first}
from pathlib import Path
from mu_sota.model import kernels
kernels.SOURCE = Path({str(source)!r})
print(kernels.library() and kernels.library().mu_answer())
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def kept_by_another_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small source's library; in this process it would be loaded already."""
    folder = tmp_path_factory.mktemp("another")
    (folder / "small.cpp").write_text(SMALL_SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_SOTA_CACHE", str(folder / "cache"))
        assert process_that_answers(folder / "small.cpp").communicate() == ("42\n", "")
    (made,) = (folder / "cache").iterdir()
    return made


def fake_compiler(folder: Path, script: str) -> Path:
    """A shell script that passes for the only compiler; it notes what it was called with in `calls` beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / "c++"
    path.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def small_enough(size: int = 16) -> bool:
    return backend.kernels_take(torch.zeros(1), size)


def runs_without_kernels() -> None:
    """The model trains all the same."""
    assert not small_enough()
    model = small_model()
    ids = torch.arange(20)[None]
    model(ids, labels=ids).loss.backward()


def test_kernels_can_be_turned_off(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By MU_SOTA_KERNELS=0: nothing is compiled, and nothing is said."""
    monkeypatch.setenv("MU_SOTA_KERNELS", "0")
    assert kernels.library() is None
    runs_without_kernels()
    assert not cache.exists()
    assert not caplog.messages


def test_without_a_compiler_it_says_once_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And works without kernels."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert kernels.library() is None
    runs_without_kernels()
    (message,) = caplog.messages
    assert "C++ compiler" in message
    assert not cache.exists()


@pytest.mark.parametrize(
    "script",
    ["echo broken toolchain >&2; exit 1", '[ "$1" = --version ] && exit 0; echo broken toolchain >&2; exit 1'],
    ids=["always", "at the source"],
)
def test_a_compiler_that_fails_is_reported_and_leaves_nothing(
    cache: Path, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the compiler said is in the one warning, and no half of a library is in the cache."""
    compiler = fake_compiler(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("CXX", str(compiler))
    assert kernels.library() is None
    runs_without_kernels()
    (message,) = caplog.messages
    assert "broken toolchain" in message
    assert str(compiler) in message
    assert not cache.exists() or not list(cache.iterdir())


@needs_kernels
def test_a_compiler_that_writes_nonsense_is_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no library is no library."""
    script = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "bin", script)))
    assert kernels.library() is None
    assert len(caplog.messages) == 1
    runs_without_kernels()


@needs_kernels
def test_a_compiler_that_is_killed_is_reported_as_killed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where memory runs out: it says nothing itself. What it says of its version need not be UTF-8."""
    script = "[ \"$1\" = --version ] && printf '\\377' || kill -KILL $$"
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "bin", script)))
    assert kernels.library() is None
    (message,) = caplog.messages
    assert "SIGKILL" in message
    assert not list(cache.iterdir())


@needs_kernels
def test_a_compiler_that_never_ends_is_given_up(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it stays."""
    script = '[ "$1" = --version ] || exec sleep 60'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "bin", script)))
    monkeypatch.setattr(kernel_library, "_PATIENCE", 0.5)
    assert kernels.library() is None
    (message,) = caplog.messages
    assert "timed out" in message
    assert not list(cache.iterdir())


def cut_short(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])


def one_bit_flipped(kept: Path) -> None:
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)


def emptied(kept: Path) -> None:
    kept.write_bytes(b"")


def a_link_to_nowhere(kept: Path) -> None:
    kept.unlink()
    kept.symlink_to("nowhere")


def a_folder(kept: Path) -> None:
    kept.unlink()
    kept.mkdir()
    (kept / "file").touch()


def a_pipe(kept: Path) -> None:
    kept.unlink()
    os.mkfifo(kept)


def of_an_older_version(kept: Path) -> None:
    """Its name had no checksum."""
    kept.rename(kept.with_name("-".join(kept.stem.split("-")[:2]) + ".so"))


@needs_kernels
@pytest.mark.parametrize(
    "damage", [cut_short, one_bit_flipped, emptied, a_link_to_nowhere, a_folder, a_pipe, of_an_older_version]
)
def test_a_damaged_library_is_compiled_anew(
    damage: Callable[[Path], None],
    kept_by_another_process: Path,
    cache: Path,
    small_source: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never loaded, which would end the process. It is said in a line, once, and nothing is left of it."""
    cache.mkdir()
    damage(Path(shutil.copy(kept_by_another_process, cache)))
    (damaged,) = cache.iterdir()
    library = kernels.library()
    assert library is not None
    assert library.mu_answer() == 42
    (message,) = caplog.messages
    assert message == f"{damaged} is damaged, or of an older version, so the CPU kernels are compiled anew"
    caplog.clear()
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert not caplog.messages
    (again,) = cache.iterdir()
    assert again.is_file()


@needs_kernels
def test_what_a_killed_compilation_leaves_is_removed(
    cache: Path, small_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next start; but not what a process that is still compiling has written."""
    folder = tmp_path / "bin"
    waits = f'[ "$1" = --version ] || {{ echo x >> "{folder}/waiting"; exec sleep 60; }}'
    monkeypatch.setenv("CXX", str(fake_compiler(folder, waits)))
    killed, compiling = (process_that_answers(small_source) for _ in range(2))
    try:
        while not (folder / "waiting").exists() or len((folder / "waiting").read_text()) < 4:
            assert killed.poll() is None
            assert compiling.poll() is None
            time.sleep(0.05)
        assert len(list(cache.iterdir())) == 2
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        monkeypatch.delenv("CXX")
        library = kernels.library()
        assert library is not None
        assert library.mu_answer() == 42
        left, made = sorted(cache.iterdir())
        assert (left.name.startswith("."), made.suffix) == (True, ".so")
        os.killpg(compiling.pid, signal.SIGKILL)
        compiling.wait()
        kernels.library.cache_clear()
        assert kernels.library() is not None  # there is nothing to compile any more
        assert list(cache.iterdir()) == [made]
    finally:
        for process in (killed, compiling):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@needs_kernels
def test_several_processes_compile_at_once(cache: Path, small_source: Path) -> None:
    """Each gets a whole library, and one is kept. Nobody has anything to say."""
    processes = [process_that_answers(small_source) for _ in range(3)]
    assert {process.communicate() for process in processes} == {("42\n", "")}
    assert len(list(cache.iterdir())) == 1


@needs_kernels
@pytest.mark.parametrize(
    ("named", "reason"),
    [("file", "File exists"), ("file/below", "Not a directory"), ("~nobody-of-this-name", "home directory")],
)
def test_a_cache_that_cannot_be_written_is_named_and_done_without(
    named: str,
    reason: str,
    cache: Path,
    small_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kernels are compiled for this process alone."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv("MU_SOTA_CACHE", named)
    before = set(tmp_path.iterdir())
    library = kernels.library()
    assert library is not None
    assert library.mu_answer() == 42
    (message,) = caplog.messages
    assert f"the folder {named!r}" in message
    assert reason in message
    assert "MU_SOTA_CACHE" in message
    assert set(tmp_path.iterdir()) == before


@needs_kernels
def test_a_full_cache_is_named_and_done_without(
    cache: Path, small_source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the disk takes no more, which is not the compiler's fault."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    library = kernels.library()
    assert library is not None
    assert library.mu_answer() == 42
    (message,) = caplog.messages
    assert f"the folder {str(cache)!r}" in message
    assert "No space left on device" in message
    assert not list(cache.iterdir())


@needs_kernels
def test_where_no_disk_has_room_the_disk_is_blamed(cache: Path, small_source: Path) -> None:
    """Not the compiler. A limit on the size of files stands for two full disks."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    process = process_that_answers(small_source, limit)
    printed, said = process.communicate()
    assert printed == "None\n"
    assert said.startswith("the CPU kernels cannot be compiled, so training takes several times as long")
    assert str(cache) in said
    assert said.count("File too large") == 2
    assert not list(cache.iterdir())


@needs_kernels
@pytest.mark.parametrize("named", ["", ".", "below/it", "~/cache", os.fsdecode(b"not-\xff-utf8")])
def test_the_cache_is_where_it_is_named(
    named: str,
    cache: Path,
    small_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Relative to the working folder, or to the home folder; beside what PyTorch keeps if none is named."""
    for folder in ("here", "home"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MU_SOTA_CACHE", named)
    library = kernels.library()
    assert library is not None
    assert library.mu_answer() == 42
    assert not caplog.messages
    expected = tmp_path / "torch" / "mu_sota" if not named else Path(named).expanduser().absolute()
    assert [path.suffix for path in expected.iterdir()] == [".so"]


@needs_kernels
def test_the_library_is_compiled_once(
    cache: Path, small_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start asks the compiler for its version alone; another version, or another source, compiles anew."""
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    compiler = fake_compiler(tmp_path / "bin", f'exec {real} "$@"')
    calls = tmp_path / "bin" / "calls"
    monkeypatch.setenv("CXX", str(compiler))
    library = kernels.library()
    assert library is not None
    assert library.mu_answer() == 42
    (made,) = cache.iterdir()
    assert len(calls.read_text().splitlines()) == 2
    calls.unlink()

    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert calls.read_text() == "--version\n"
    assert list(cache.iterdir()) == [made]

    small_source.write_text('extern "C" int mu_answer() { return 43; }')
    kernels.library.cache_clear()
    changed = kernels.library()
    assert changed is not None
    assert changed.mu_answer() == 43
    assert len(list(cache.iterdir())) == 2

    fake_compiler(tmp_path / "bin", f'[ "$1" = --version ] && echo newer || exec {real} "$@"')
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert len(list(cache.iterdir())) == 3


@needs_kernels
def test_a_compiler_without_openmp_makes_kernels_of_one_thread(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    """As that of macOS: the same results, whatever the number of threads."""
    qkv = scaled_qkv((2, 19, 3, 5), 1.0, 0)
    inputs = feed_forward_inputs(100, 16, 32, 1.0, 0)
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    refuses = 'for word; do [ "$word" = -fopenmp ] && { echo no OpenMP >&2; exit 1; }; done'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "bin", f'{refuses}\nexec {real} "$@"')))
    library = kernels.library()
    assert library is not None
    (made,) = cache.iterdir()
    assert library._name == str(made)
    for number in (1, 3):
        threads(number)
        assert_near(kernels.fused_attention(qkv)[0], full_attention(qkv.detach().double())[0], 1e-5)
        output = kernels.fused_feed_forward(*inputs, 0.0, NO_SEED)
        exact = doubled(*inputs)
        expected = plain_feed_forward(None, *exact)
        wanted = torch.autograd.grad(expected.sum(), exact)
        for ours, theirs in zip(torch.autograd.grad(output.sum(), inputs), wanted, strict=True):
            assert_near(ours, theirs, 1e-5)


@needs_kernels
def test_the_source_has_no_warnings(tmp_path: Path) -> None:
    """Under the compiler's common warnings, and for a processor without wide vectors."""
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert real
    command = [real, "-std=c++17", "-fsyntax-only", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", str(kernels.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr
