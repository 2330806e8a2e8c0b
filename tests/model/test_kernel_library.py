"""Compiling the kernels: once, with whichever compiler there is, and doing without."""

import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
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

from mu_sota.model import backend, kernels


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
def test_a_cache_that_cannot_be_written_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands where the folder should be."""
    cache.write_text("")
    assert kernels.library() is None
    assert len(caplog.messages) == 1
    runs_without_kernels()


@needs_kernels
def test_the_library_is_compiled_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start asks the compiler for its version alone; another version, or another source, compiles anew."""
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int mu_answer() { return 42; }')
    monkeypatch.setattr(kernels, "SOURCE", source)
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

    source.write_text('extern "C" int mu_answer() { return 43; }')
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
