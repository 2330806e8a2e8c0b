"""From the name or path of a text to its documents: `pydocs`, `wikitext-2`, files, a folder, a data set of the hub."""

import contextlib
import hashlib
import json
import platform
import re
import stat
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import xxhash

from mu_sota.common.files import has_settled, hash_of, replacing, stamp_of, write_json
from mu_sota.common.outside import user_path
from mu_sota.model.errors import InputError, cut

from .documents import ALL, Source, Tell
from .options import SPLITS, Documents, TextOptions
from .pydocs import read_pydocs

NAMES = ("pydocs", "wikitext-2")
_SOURCES = (
    "`pydocs`, `wikitext-2`, the path of a file or folder of texts or of a prepared one, or the name of a data set of "
    "the Hugging Face hub as OWNER/NAME"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL = 2**20
_RULES = 1  # of which files are text, and of their description: raise it when they change


def require_source(source: str) -> None:
    """Refuse a text that does not exist; nothing is read, and the hub is not asked.

    Raises:
        InputError: there is no such name, file or folder, nor can it be one of the hub.
    """
    if not isinstance(source, str):  # in a record that somebody changed
        raise InputError(f"the data are {cut(repr(source))}: give {_SOURCES}.")
    if not source.strip():
        raise InputError(f"--data is empty (a variable without a value?): give {_SOURCES}.")
    if source in NAMES:
        return
    path = user_path(source)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{source!r} cannot be a path ({error}): give {_SOURCES}.") from error
    if not exists and not _HUB_NAME.fullmatch(source):
        raise InputError(f"There is no data named {source!r}, nor a file or folder of that name: give {_SOURCES}.")


def find_source(source: str, options: TextOptions, cache: Path) -> Source:
    """Find a text by its name or path, as `load_corpus` documents them; nothing is read yet but for the fingerprint.

    Raises:
        InputError: there is no such name, file or folder, it cannot be read, or it cannot be told which splits it has.
    """
    require_source(source)
    if source == "pydocs":
        library = Path(sysconfig.get_paths()["stdlib"])
        return Source(["pydocs", platform.python_version(), str(library)], _parts_of(lambda: read_pydocs(library)))
    if source == "wikitext-2":
        from .hub import read_wikitext

        return Source(["wikitext-2-raw-v1"], _parts_of(read_wikitext))
    path = user_path(source)
    if not path.exists():
        from .hub import hub_source

        return hub_source(source, options)
    return _files(path, options, cache)


def _parts_of(read: Callable[[], Documents]) -> dict[str, Callable[[Tell], Iterator[Iterator[str]]]]:
    """Documents that are made all at once, and small enough to be kept."""
    made: Documents = {}

    def part(split: str) -> Callable[[Tell], Iterator[Iterator[str]]]:
        def documents(_: Tell) -> Iterator[Iterator[str]]:
            if not made:
                made.update(read())
            return (iter([text]) for text in made[split] if text and not text.isspace())

        return documents

    return {split: part(split) for split in SPLITS}


def _files(path: Path, options: TextOptions, cache: Path) -> Source:
    from .raw_files import unreadable

    try:
        if path.is_dir():
            folder, found = path, _found_in(path, options, cache)
        else:
            folder = path.parent
            found = {ALL: [[path.name, digest(path, cache)]]}, [], path.stat().st_size
            options = options.with_file(path)
    except OSError as error:
        raise unreadable(Path(error.filename or path), error) from error
    by_split, lines, n_bytes = found
    return Source(
        [[*map(list, by_split.items())], options.text_column, options.splits],
        {split: _reader(folder, files, options) for split, files in by_split.items()},
        n_bytes,
        lines,
    )


_Found = tuple[dict[str, list[list[str]]], list[str], int]
"""Of a folder: for each split the files, each as path and digest; what was taken as what; the bytes of the files."""


def _found_in(folder: Path, options: TextOptions, cache: Path) -> _Found:
    """What a folder holds; remembered in the cache as long as it lists the same files of the same stamps.

    A folder of which a file was written to in the last two seconds is not remembered: a change soon after could leave
    its stamp as it is.
    """
    from .folders import describe, find_files

    listed = _listing(folder)
    rules = [_RULES, version("datasets"), options.text_suffixes, options.splits, options.data_config]
    key = hashlib.sha256(json.dumps([str(folder.resolve()), rules]).encode()).hexdigest()[:32]
    memory = cache / "listings" / f"{key}.json"
    if listed and (known := _remembered(memory, listed)):
        return known
    taken = find_files(folder, options)
    by_split = {
        split: [[file.relative_to(folder).as_posix(), digest(file, cache)] for file in files]
        for split, files in taken.files.items()
    }
    n_bytes = sum(file.stat().st_size for files in taken.files.values() for file in files)
    found = by_split, describe(taken, folder), n_bytes
    if listed and listed == _listing(folder):  # nothing has changed while it was read
        content = json.dumps([listed, found])
        with contextlib.suppress(OSError), replacing(memory) as temporary:  # else it is read each time
            temporary.write_text(f"{_seal(content)}\n{content}", encoding="ascii")
    return found


def _listing(folder: Path) -> str | None:
    """The hash of the paths and stamps of all files of a folder; None where one of them may still change unseen."""
    from .folders import walk

    lines = []  # not tuples, of which so many would set off the garbage collector again and again
    for path, status in walk(folder):
        stamp = status if isinstance(status, str) else stamp_of(status)
        if not isinstance(stamp, str) and not has_settled(stamp):
            return None
        lines.append(f"{path!r} {stamp}")
    return _seal("\n".join(sorted(lines)))


def _remembered(memory: Path, listed: str) -> _Found | None:
    try:
        seal, _, content = memory.read_text(encoding="ascii").partition("\n")
    except (OSError, ValueError):
        return None
    if seal != _seal(content):
        return None
    known_listing, found = json.loads(content)
    return tuple(found) if known_listing == listed else None


def _seal(content: str) -> str:
    return xxhash.xxh3_128_hexdigest(content.encode())


def _reader(folder: Path, files: list[list[str]], options: TextOptions) -> Callable[[Tell], Iterator[Iterator[str]]]:
    from .readers import read_documents

    return lambda tell: chain.from_iterable(read_documents(folder / name, options, tell) for name, _ in files)


def digest(file: Path, cache: Path) -> str:
    """The SHA-256 of a file's bytes; that of a large file is remembered in the cache as long as its stamp is the same.

    Raises:
        OSError: it cannot be read.
        InputError: it is neither a file nor a folder.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{file} is neither a file nor a folder: give {_SOURCES}.")
    if about.st_size < _SMALL:  # which is read as fast as what is remembered
        return hash_of(file, hashlib.sha256())
    stamp = stamp_of(about)
    settled = has_settled(stamp)  # by the time before it is read
    key = json.dumps([str(file.resolve()), *stamp])
    memory = cache / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        known: dict[str, Any] = json.loads(memory.read_text(encoding="utf-8"))
        if known["file"] == key:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hashed = hash_of(file, hashlib.sha256())
    if settled:
        with contextlib.suppress(OSError):  # where nothing can be remembered, it is read each time
            write_json(memory, {"file": key, "sha256": hashed})
    return hashed
