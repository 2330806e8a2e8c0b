"""The documents of a .txt, .jsonl or .parquet file."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from mu_sota.model.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".parquet")


def read_file(path: Path) -> list[str]:
    """The documents of a .txt (one), .jsonl (field "text") or .parquet file (column "text"), without blank ones.

    Raises:
        InputError: the file is of another kind, cannot be read, or has no text there; it names the line or row.
    """
    reader = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[_kind(path)]
    return [text for text in reader(path) if text and not text.isspace()]


def digest(path: Path) -> list[str]:
    """What decides the documents of a file: its kind and the hash of its bytes."""
    return [_kind(path), hashlib.sha256(read_bytes(path)).hexdigest()]


def read_bytes(path: Path) -> bytes:
    """The content of a file, or the error that a user reads."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InputError:
    """The error of a file or folder that the system does not open."""
    return InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions and its disk.")


def _kind(path: Path) -> str:
    if (suffix := path.suffix.lower()) in SUFFIXES:
        return suffix
    raise InputError(f"{path} is not a {', '.join(SUFFIXES)} file: convert it to one of these.")


def _read_text(path: Path) -> list[str]:
    content = read_bytes(path)
    try:
        return [content.decode("utf-8")]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8."
        ) from None


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            raise InputError(
                f"{path}, line {number} is not JSON ({error}): give one JSON object a line, in UTF-8."
            ) from None
        if not isinstance(record, dict):
            raise InputError(f'{path}, line {number} is not a JSON object: give {{"text": "..."}} on every line.')
        text = record.get("text")
        if not isinstance(text, str):
            problem = f"a field `text` of type {type(text).__name__}" if "text" in record else "no field `text`"
            fields = ", ".join(record) or "none"
            raise InputError(
                f"{path}, line {number} has {problem} (fields: {fields}): put the document there as a string."
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"{path}, line {number} escapes a lone surrogate, which is not a character: remove it."
            ) from None
        yield text


def _read_parquet(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(read_bytes(path)))
        names = file.schema_arrow.names
        if "text" not in names:
            raise InputError(
                f"{path} has no column `text` (columns: {', '.join(names)}): rename the column with the documents."
            )
        texts = file.read(columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}): write it again.") from error
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(
                f"{path}, row {number}: `text` is of type {type(text).__name__}: put the document there as a string."
            )
    return texts
