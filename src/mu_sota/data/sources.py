"""From the name or path of a text to its documents: `pydocs`, `wikitext-2`, files, a folder, a data set of the hub."""

import hashlib
import json
import platform
import re
import stat
import sysconfig
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mu_sota.common.files import hash_of, write_json
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
    from .folders import describe, find_files
    from .raw_files import unreadable

    try:
        if path.is_dir():
            found = find_files(path, options)
            by_split, folder, lines = found.files, path, describe(found, path)
        else:
            by_split, folder, lines = {ALL: [path]}, path.parent, []
            options = options.with_file(path)
        files = [file for split in by_split.values() for file in split]
        fingerprint = [
            [split, [[file.relative_to(folder).as_posix(), digest(file, cache)] for file in files]]
            for split, files in by_split.items()
        ]
        n_bytes = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise unreadable(Path(error.filename or path), error) from error
    return Source(
        [fingerprint, options.text_column, options.splits],
        {split: _reader(files, options) for split, files in by_split.items()},
        n_bytes,
        lines,
    )


def _reader(files: list[Path], options: TextOptions) -> Callable[[Tell], Iterator[Iterator[str]]]:
    from .readers import read_documents

    return lambda tell: chain.from_iterable(read_documents(file, options, tell) for file in files)


def digest(file: Path, cache: Path) -> str:
    """The SHA-256 of a file's bytes; remembered in the cache as long as size and times of the file are the same.

    Raises:
        OSError: it cannot be read.
        InputError: it is neither a file nor a folder.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{file} is neither a file nor a folder: give {_SOURCES}.")
    if about.st_size < _SMALL:  # which is read as fast as what is remembered
        return hash_of(file, hashlib.sha256())
    key = json.dumps([str(file.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino])
    memory = cache / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        known: dict[str, Any] = json.loads(memory.read_text(encoding="utf-8"))
        if known["file"] == key:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hashed = hash_of(file, hashlib.sha256())
    write_json(memory, {"file": key, "sha256": hashed})
    return hashed
