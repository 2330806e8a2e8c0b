"""The CPU kernels as a shared library: compiled by the machine's own compiler at first use, kept, checked, loaded.

A library that is cut short, or has a flipped bit, ends the process that loads it without a word. So the name of a kept
one ends with the checksum of its content, and a file with other content is compiled anew instead of loaded.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from transformers.utils import logging

# -march: the processor's widest vectors. A compiler without OpenMP, as that of macOS, makes kernels of one thread.
_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC"]
_TRIES = [["-march=native", "-fopenmp"], ["-march=native"], ["-mcpu=native"], []]
_PATIENCE = 600  # seconds; a compiler usually takes 3
_ROOM = 2**23  # bytes that a compilation may need, with what the compiler writes in between
_WORKSPACE = ".kernels-"  # begins the name of a folder for one compilation
_LOCK = "lock"

logger = logging.get_logger(__name__)


def load(source: Path, compiler: str) -> ctypes.CDLL:
    """The library of this source, compiler and processor.

    It is kept in the folder of the environment variable MU_SOTA_CACHE, or beside what PyTorch keeps (~/.cache/torch).
    Where that cannot be, it is compiled for this process alone, and a line says why.

    Raises:
        subprocess.SubprocessError: the compiler fails, or takes too long.
        OSError: no folder can be written, or what was compiled cannot be loaded.
    """
    version = _run([compiler, "--version"])
    described = (source.read_text(encoding="utf-8"), version, _processor(), str(_TRIES), str(_FLAGS))
    name = f"kernels-{hashlib.sha256(repr(described).encode()).hexdigest()[:16]}"
    named = os.environ.get("MU_SOTA_CACHE") or str(Path(torch.hub.get_dir()).with_name("mu_sota"))
    try:
        # Absolute: a path without a slash would be looked for among the system's libraries.
        folder = Path(named).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        return ctypes.CDLL(str(_undamaged(folder, name) or _keep(folder, name, source, compiler)))
    except (OSError, RuntimeError) as error:  # RuntimeError: `~` of a user who has no home
        reason = error
    try:
        # A library needs its file only while it is being loaded.
        with tempfile.TemporaryDirectory(prefix="mu-sota-", ignore_cleanup_errors=True) as workspace:
            library = ctypes.CDLL(str(_compile(source, compiler, Path(workspace))))
    except OSError as error:
        raise OSError(f"neither in the folder {named!r} ({reason}) nor in a temporary one ({error})") from None
    logger.warning(
        f"the compiled CPU kernels cannot be kept in the folder {named!r} ({reason}), so this process compiled "
        f"its own; make room there, or name another folder in the environment variable MU_SOTA_CACHE"
    )
    return library


def _undamaged(folder: Path, name: str) -> Path | None:
    """The kept library. Where there is none, what only has its name is removed."""
    found = list(folder.glob(f"{name}*.so"))
    for path in found:
        if path.is_file() and path.stem == f"{name}-{_checksum(path)}":
            return path
    for path in found:
        logger.warning(f"{path} is damaged, or of an older version, so the CPU kernels are compiled anew")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # another process may have done so
    return None


def _keep(folder: Path, name: str, source: Path, compiler: str) -> Path:
    """Compile, and keep what can be loaded. Several processes may do so at once."""
    with _workspace(folder) as workspace:
        fresh = _compile(source, compiler, workspace)
        ctypes.CDLL(str(fresh))
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        kept = folder / f"{name}-{_checksum(fresh)}.so"
        os.replace(fresh, kept)
    return kept


def _compile(source: Path, compiler: str, workspace: Path) -> Path:
    fresh = workspace / "kernels.so"
    for more in _TRIES:
        try:
            _run([compiler, *_FLAGS, *more, "-o", str(fresh), str(source)], TMPDIR=str(workspace))
            return fresh
        except subprocess.CalledProcessError as error:
            failure = error
    with tempfile.TemporaryFile(dir=workspace) as file:  # a full disk is not the compiler's fault
        file.write(bytes(_ROOM))
    raise failure


def _run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **environment},
        timeout=_PATIENCE,
        check=True,
    )
    return done.stdout


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A new folder for one compilation, with a file that is locked until this process is done, or dead."""
    with tempfile.TemporaryDirectory(prefix=_WORKSPACE, dir=folder, ignore_cleanup_errors=True) as name:
        unlocked = Path(name, "unlocked")
        with unlocked.open("w") as file:
            _lock(file)
            unlocked.rename(Path(name, _LOCK))  # it has this name only when it is locked
            yield Path(name)


def _remove_leftovers(folder: Path) -> None:
    """Remove the workspaces of processes that were killed, and none in which another process is compiling."""
    for workspace in folder.glob(f"{_WORKSPACE}*"):
        with suppress(OSError):  # another process removes it, too, or it is another user's
            lock = workspace / _LOCK
            if not lock.exists():  # it is being made, or a process was killed as it made or removed it
                if time.time() - workspace.stat().st_mtime > _PATIENCE:
                    shutil.rmtree(workspace)
                continue
            with lock.open("r+") as file:
                if _lock(file):
                    shutil.rmtree(workspace)


def _lock(file: IO[str]) -> bool:
    """Lock a file that no other process has locked. False if one has, or if this system or this disk has no locks."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _processor() -> str:
    """What tells processors with different instructions apart: a cache folder can be shared between machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {features}"
