"""What comes from outside, trusted in nothing: one way to read a small file, and one sentence for whatever goes wrong.

A file may be a pipe or a device, endless, nested without end, in no encoding, or of another kind than its name says; a
library that reads it may raise anything.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mu_sota.model.errors import InputError, cut

from .text import one_line

MOST_BYTES = 64 * 2**20
"""Of a file that is read as a whole: the largest tokenizers of the hub have half of it."""

_READ_BY_LIBRARIES = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".pt")
_MOST_LEVELS = 40
_LARGEST_NUMBER = 2**1023  # what a float holds


@contextmanager
def in_one_sentence(failure: str, remedy: str) -> Iterator[None]:
    """Whatever is raised in a `with` statement becomes one sentence; an InputError stays as it is.

    Args:
        failure: what the sentence begins with, such as `the model in DIR cannot be loaded`.
        remedy: what the user can do.

    Raises:
        InputError: anything was raised.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # What is written in Rust raises PanicException, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{failure} ({reason_of(error)}); {remedy}") from error


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words that fit a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is no UTF-8"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        return f"{name} is {cut(repr(first['input']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
    said = one_line(error)
    return said.removeprefix("ValueError: ")  # which says no more than the sentence does


def require_file(file: Path, most: int | None = MOST_BYTES) -> None:
    """Refuse what is no regular file, before it is opened: a pipe would wait, and a device may never end.

    Args:
        file: links are followed.
        most: bytes that it may have; None for any number.

    Raises:
        OSError: it is not there, or cannot be looked at.
        ValueError: it is something else than a file, or too large.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a folder, pipe, device or socket, not a file")
    if most is not None and status.st_size > most:
        raise ValueError(f"it has {status.st_size:,} bytes, more than the {most:,} that are read")


def read_text(file: Path, most: int = MOST_BYTES) -> str:
    """The text of a small file in UTF-8.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8.
    """
    require_file(file, most)
    # Some files of the system say that they are regular, and empty, and then wait or do not end. Windows has no such.
    with os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
        content: bytes | None = opened.read(most + 1)
    if content is None:
        raise ValueError("it would have to be waited for")
    if len(content) > most:
        raise ValueError(f"it has more than the {most:,} bytes that are read")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is not JSON, has a key twice, a number beyond all floats, or is nested too deeply.
        RecursionError: it is nested far too deeply.
    """
    content = json.loads(text, object_pairs_hook=_without_repeats)
    require_shallow(content)
    return content


def parse_object(text: str) -> dict[str, Any]:
    """The same, where an object is expected.

    Raises:
        ValueError: also if it holds something else.
        RecursionError: it is nested far too deeply.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError(f"it holds {cut(repr(content))}, not an object with names and values")
    return content


def require_shallow(value: Any, levels: int = _MOST_LEVELS) -> None:
    """Refuse what later code could fail on: more levels of lists and objects, or numbers that no float holds.

    Raises:
        ValueError: it has them.
    """
    if isinstance(value, dict | list):
        if levels == 0:
            raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")
        for item in value.values() if isinstance(value, dict) else value:
            require_shallow(item, levels - 1)
    elif isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
        raise ValueError(f"it holds a number of {value.bit_length():,} bits")


def require_files(folder: Path) -> None:
    """Refuse a folder of a model or tokenizer if one of the files that a library may open in it is none, or hostile.

    Raises:
        OSError: the folder cannot be listed.
        ValueError: a file is no regular file, or is JSON that cannot be read; the message names it.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix not in _READ_BY_LIBRARIES or file.name.startswith("."):
            continue
        try:
            require_file(file, most=None)
            if file.suffix == ".json":
                content = parse_json(read_text(file))
                if file.name.endswith(".index.json"):
                    _require_inside(content["weight_map"].values())
        except Exception as error:
            raise ValueError(f"{file.name}: {reason_of(error)}") from error


def user_path(text: str) -> Path:
    """The path that a user names, with ~ for a home folder; where nobody has that name, or no home, as it stands."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _require_inside(names: Iterable[Any]) -> None:
    """The files that an index of weights names are in its folder."""
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise ValueError(f"it names {cut(repr(name))}, which is not in its folder")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {cut(repr(next(name for name in names if names.count(name) > 1)))} twice")
    return content
