"""Files are complete or not there at all: written under a temporary name in the same folder, then renamed."""

import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from platformdirs import user_cache_path

from mu_sota.model.errors import InputError

from .outside import in_one_sentence, parse_object, read_text, user_path

_SEAL = "checksum"
_LONGEST_TICK = 2 * 10**9  # nanoseconds: of the clock by which FAT writes times; other file systems have finer ones


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write a file or a folder to; on success, rename it to `path`.

    An exception removes the temporary and leaves `path` as it was. What is renamed is on the disk by then, so that a
    loss of power leaves the old content or the new. The rename is atomic for a file. An existing folder is moved away
    first, so only a kill between two renames can leave `path` missing.

    Raises:
        InputError: `path` is a device, pipe or socket, which a rename would destroy.
    """
    target = Path(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise InputError(
            f"{target} is a device, pipe or socket; give the name of a file or folder that can be replaced"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        fresh = workspace / target.name
        yield fresh
        sync(fresh)
        if fresh.is_dir() and target.is_dir():
            os.replace(target, workspace / "replaced")
        os.replace(fresh, target)
        sync(target.parent, deep=False)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def sync(path: Path, deep: bool = True) -> None:
    """Wait until a file, or a folder and what is in it, is on the disk.

    Args:
        path: of a file or folder.
        deep: False for a folder's own list of names alone, as after a rename in it.
    """
    if path.is_dir():
        for inside in path.iterdir() if deep else ():
            sync(inside)
        if os.name == "nt":  # where a folder cannot be opened
            return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot, as some of networks
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, with `replacing`; a number that is not finite becomes null."""
    with replacing(path) as temporary:
        # A name of a file that is not UTF-8 holds lone surrogates, which then stand as JSON escapes them.
        temporary.write_text(as_json(value, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")


def write_sealed(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """As `write_json`, with a checksum of the content."""
    write_json(path, content | {_SEAL: _seal_of(json.loads(as_json(content)))})


def read_sealed(file: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is other than what was written.
    """
    content = parse_object(read_text(file))
    if content.pop(_SEAL, None) != _seal_of(content):
        raise ValueError("its content is other than what was written")
    return content


def _seal_of(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def checksum(file: Path) -> str:
    """XXH3 of a file's bytes: it finds damage, not malice.

    Raises:
        OSError: it cannot be read.
    """
    return hash_of(file, xxhash.xxh3_128())


def hash_of(file: Path, hashed: Any) -> str:
    """The hash of a file's bytes in hexadecimal digits, by an object of `hashlib` or alike that has seen none.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        while block := content.read(2**22):
            hashed.update(block)
    return str(hashed.hexdigest())


def stamp_of(status: os.stat_result) -> list[int]:
    """Size, times and number of a file: what is other after it was written to, though its content is not read."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def has_settled(stamp: list[int]) -> bool:
    """False for a file that was written to so lately that another change could give it the same stamp."""
    return max(stamp[1:3]) < time.time_ns() - _LONGEST_TICK


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON by its standard, which has no NaN and no infinity: they become null."""
    return json.dumps(_without_infinities(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return value


def cache_folder() -> Path:
    """The folder of files that can be made again: environment variable MU_SOTA_CACHE, or the user's cache folder.

    The latter is ~/.cache/mu_sota on Linux.
    """
    return user_path(os.environ.get("MU_SOTA_CACHE") or str(user_cache_path("mu_sota", appauthor=False)))


def read_json(file: Path, remedy: str, kind: str = "") -> dict[str, Any]:
    """The content of a JSON file, an object; or nothing if there is no file.

    Args:
        file: to read.
        remedy: what the user can do if it is damaged.
        kind: what the sentence calls it, before its path.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    if not os.path.lexists(file):
        return {}
    with in_one_sentence(f"{kind}{file} is damaged", remedy):
        return parse_object(read_text(file))
