"""One process at a time in a folder; the second is told who the first is."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .files import write_json
from .text import timestamp


@contextmanager
def alone(lock: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock until the block ends. The operating system releases it if the process dies.

    The lock's file stays where it is: removed, a third process could lock a new one while a second waits at the old.

    Args:
        lock: path of the lock's file, in a folder that is there.
        busy: called where another process holds the lock, with who it is. It may raise; else this waits.
    """
    named = lock.with_name(f"{lock.name}.json")
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        busy(_holder(named))
        held.acquire()
    try:
        write_json(named, {"process": os.getpid(), "machine": platform.node(), "since": timestamp()})
        yield
    finally:
        named.unlink(missing_ok=True)
        held.release()


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['machine']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun, or has just ended
        return "another process"
