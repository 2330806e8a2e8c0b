"""The documents of a file, one after the other: of plain text, CSV, JSON, parquet and Arrow, also compressed.

Nothing is held that grows with the file: a text is given in pieces, a table row by row.
"""

import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mu_sota.model.errors import InputError, cut

from .encodings import decode, find_encoding
from .options import COMPRESSIONS, TABLE_SUFFIXES, TextOptions

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".txt", ".jsonl", ".parquet")

PIECE_BYTES = 1_000_000
"""The most characters of a piece."""

_BLOCK_BYTES = 1 << 18
_LONGEST_LINE = 100_000_000  # characters, also of a cell of a .csv file
_ROWS_A_BATCH = 16  # of parquet: where rows share a text, memory holds it that often
_ROWS_TO_KNOW = 100  # from which the column with the texts is chosen where none has a name that says it

# A file that unfolds to more than both is a trap, not a text.
_MOST_TIMES_ITS_SIZE = 1000
_MOST_UNFOLDED = 1_000_000_000
_LEAST_BYTES_A_ROW = 64

# The tokens of a text that is cut there are those of its pieces: see `tokenizer._CUT`.
_LAST_CUT = re.compile(r"(?s:.*)\S(?=[ \n])")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_LINE_AND_MORE = re.compile(r"[^\n]*\n\s*\S")


def read_documents(path: Path, options: TextOptions, tell: Callable[[str], None]) -> Iterator[Iterator[str]]:
    r"""The documents of a file, in order, each as its pieces: texts of 1 to `PIECE_BYTES` characters that join to it.

    All the pieces of a document are to be taken before the next document is asked for. Blank documents are left out.
    In plain text, CSV and JSON files each `\r\n` and `\r` is read as `\n`.

    Args:
        path: a file of one of the kinds of `options.kind`.
        options: how it is read.
        tell: gets sentences about what a user may want to know: another encoding, characters that were replaced, rows
            that were left out, a column that was chosen.

    Raises:
        InputError: the file cannot be read, is broken or not what its name says, or has no text where it should be; it
            names the line or row.
    """
    limit = _require_regular(path)
    kind = options.kind(path)
    if kind is None:
        known = ", ".join((*options.text_suffixes, *TABLE_SUFFIXES))
        raise InputError(f"{path} is no file of text: give one that ends in {known}, or set text_suffixes.")
    if kind in TABLE_SUFFIXES:
        yield from _texts_of_rows(path, kind, options, tell, limit)
        return
    encoding = find_encoding(path, lambda: _blocks(path))
    if encoding.remark:
        tell(encoding.remark)
    if encoding.blank:
        tell(f"{path} is blank and was left out.")
    else:
        yield _pieces(decode(_blocks(path), encoding))


def read_file(path: Path) -> list[str]:
    """The documents of a file, whole."""
    return ["".join(pieces) for pieces in read_documents(path, TextOptions(), lambda remark: None)]


def digest(path: Path) -> list[str]:
    """What decides the documents of a file: its kind and the hash of its bytes."""
    return [path.suffix.lower(), hashlib.sha256(read_bytes(path)).hexdigest()]


def read_bytes(path: Path) -> bytes:
    """The content of a file, or the error that a user reads."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InputError:
    """The error of a file or folder that the system does not open."""
    return InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions and its disk.")


def _require_regular(path: Path) -> int:
    """The most bytes that the file may unfold to, from its size."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a folder, pipe, device or socket: give a regular file.")
    return max(_MOST_UNFOLDED, _MOST_TIMES_ITS_SIZE * status.st_size)


def _require_sane(path: Path, unfolded: int, limit: int) -> None:
    if unfolded > limit:
        raise InputError(
            f"{path} unfolds to more than {limit:,} bytes, over {_MOST_TIMES_ITS_SIZE:,} times its size, which no text "
            "does: leave it out, or unpack it yourself."
        )


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    held = ""
    for text in texts:
        held += text
        start = 0
        while len(held) - start > PIECE_BYTES:
            end = start + PIECE_BYTES
            space = max(held.rfind(" ", start, end + 1), held.rfind("\n", start, end + 1))
            if space > start and (match := _LAST_CUT.match(held, start, space + 1)):
                end = match.end()
            elif held[end - 1 : end + 1] == "\r\n":
                end -= 1
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, unfolded."""
    limit, unfolded = _require_regular(path), 0
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            for block in _unfold(file, suffix):
                unfolded += len(block)
                _require_sane(path, unfolded, limit)
                yield block
    except InputError:
        raise
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise InputError(f"{path} is no whole {suffix} file ({error}): compress it again, or get it again.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _unfold(file: IO[bytes], suffix: str) -> Iterator[bytes]:
    if suffix == ".zst":
        yield from _unfold_zst(file)
        return
    formats: dict[str, Callable[[IO[bytes]], AbstractContextManager[Any]]] = {".gz": gzip.open, ".xz": lzma.open}
    with formats.get(suffix, nullcontext)(file) as unfolded:
        while block := unfolded.read(_BLOCK_BYTES):
            yield block


def _unfold_zst(file: IO[bytes]) -> Iterator[bytes]:
    """As `zstandard.open` reads, but a file that ends too early is an error."""
    import zstandard

    unfolder = None
    try:
        while block := file.read(4096):  # which unfold to 128 MiB at most
            while block:
                unfolder = unfolder or zstandard.ZstdDecompressor().decompressobj()
                yield unfolder.decompress(block)
                block = unfolder.unused_data if unfolder.eof else b""
                unfolder = None if unfolder.eof else unfolder
    except zstandard.ZstdError as error:
        raise ValueError(error) from error
    if unfolder:
        raise EOFError("it ends too early")


@contextmanager
def _on_disk(path: Path) -> Iterator[str]:
    """The name of a file with the unfolded content, for readers that go back and forth in it."""
    if path.suffix.lower() not in COMPRESSIONS:
        yield str(path)
        return
    with tempfile.NamedTemporaryFile() as file:
        for block in _blocks(path):
            file.write(block)
        file.flush()
        yield file.name


def _text(path: Path, tell: Callable[[str], None]) -> Iterator[str]:
    encoding = find_encoding(path, lambda: _blocks(path))
    if encoding.remark:
        tell(encoding.remark)
    return decode(_blocks(path), encoding)


def _lines(path: Path, texts: Iterable[str]) -> Iterator[str]:
    r"""Lines with their `\n`. (`str.splitlines` would also cut at U+2028 and others.)"""
    begun: list[str] = []
    length, number = 0, 1
    for text in texts:
        for line in io.StringIO(text, newline="\n"):
            begun.append(line)
            length += len(line)
            if length > _LONGEST_LINE:
                raise InputError(
                    f"{path}, line {number:,} has more than {_LONGEST_LINE:,} characters: put every document in a line "
                    "of its own."
                )
            if line.endswith("\n"):
                yield "".join(begun)
                begun.clear()
                length, number = 0, number + 1
    if begun:
        yield "".join(begun)


def _texts_of_rows(
    path: Path, kind: str, options: TextOptions, tell: Callable[[str], None], limit: int
) -> Iterator[Iterator[str]]:
    nulls = blanks = unfolded = 0
    for place, column, value in _values(path, kind, options, tell, limit):
        text = _as_text(path, place, column, value)
        unfolded += _LEAST_BYTES_A_ROW + len(text or "")
        _require_sane(path, unfolded, limit)
        if text is None:
            nulls += 1
        elif not text or text.isspace():
            blanks += 1
        else:
            yield _pieces([text])
    if nulls or blanks:
        counts = [f"{count:,} {what}" for count, what in ((nulls, "null"), (blanks, "blank")) if count]
        rows = "row was" if nulls + blanks == 1 else "rows were"
        tell(f"{path}: {' and '.join(counts)} {rows} left out.")


def _values(
    path: Path, kind: str, options: TextOptions, tell: Callable[[str], None], limit: int
) -> Iterator[tuple[str, str, object]]:
    """Of every row: its place (`line 3`), the name of the column with the text, and what is there."""
    if kind in (".parquet", ".arrow"):
        yield from _columnar_values(path, kind, options, tell, limit)
        return
    texts = _text(path, tell)
    records = {
        ".csv": lambda: _csv_records(path, texts, ",;\t"),
        ".tsv": lambda: _csv_records(path, texts, "\t"),
        ".json": lambda: _json_records(path, texts, options),
        ".jsonl": lambda: _json_lines(path, texts),
        ".ndjson": lambda: _json_lines(path, texts),
    }[kind]()
    first = list(islice(records, 1))
    if options.text_column is None and first and "text" not in first[0][1]:
        first += islice(records, _ROWS_TO_KNOW)
    if not first:
        return
    by_name: dict[str, list[object]] = {}
    for _, fields in first:
        for name, value in fields.items():
            by_name.setdefault(name, []).append(value)
    texts_in = [name for name, values in by_name.items() if _all_texts(values, numbers=kind in (".csv", ".tsv"))]
    column = _column(path, options, list(by_name), texts_in, tell)
    for place, fields in chain(first, records):
        if column not in fields:
            raise InputError(
                f"{path}, {place} has no `{column}`, only {_listed(fields)}: give every record one, or another with "
                "--set text_column=..."
            )
        yield place, column, fields[column]


def _column(
    path: Path, options: TextOptions, names: list[str], texts_in: list[str], tell: Callable[[str], None]
) -> str:
    """The column to read, of those there are and those that hold texts."""
    if (column := options.text_column) is not None:
        if column not in names:
            raise InputError(
                f"{path} has no column `{column}`, only {_listed(names)}: name one of these with --set text_column=..."
            )
        return column
    for column in ("text", "messages"):
        if column in names:
            return column
    if len(texts_in) != 1:
        which = f"{_listed(texts_in)} may hold the texts" if texts_in else "none of its columns holds texts"
        raise InputError(
            f"{path} has no column `text`, only {_listed(names)}, and {which}: say which to read with --set "
            "text_column=..."
        )
    tell(f"{path} has no column `text`: column `{cut(texts_in[0])}` was read, the only one with texts.")
    return texts_in[0]


def _require_distinct(path: Path, names: list[str]) -> None:
    if double := [name for name, count in Counter(names).items() if name and count > 1]:
        raise InputError(f"{path} has more than one column `{cut(double[0])}`: rename all but one.")


def _listed(names: Iterable[str]) -> str:
    return cut(", ".join(f"`{name}`" for name in names), 200) or "empty records"


def _all_texts(values: list[object], *, numbers: bool) -> bool:
    """True if the values are texts, but for nulls and blanks; with `numbers`, a text that is a number is none."""
    values = [value for value in values if value not in (None, "")]
    return bool(values) and all(
        _is_chat(value) or (isinstance(value, str) and not (numbers and _is_number(value))) for value in values
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_turn(message) is not None for message in value)


def _turn(message: object) -> tuple[str, str] | None:
    """Role and content of a chat message."""
    if isinstance(message, dict):
        for role, content in (("role", "content"), ("from", "value")):
            if isinstance(message.get(role), str) and isinstance(message.get(content), str):
                return message[role], message[content]
    return None


def _as_text(path: Path, place: str, column: str, value: object) -> str | None:
    """A text as it is, chat messages as `role: content` with a blank line between them, None for null."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and (not value or isinstance(value[0], dict)):
        turns = []
        for number, message in enumerate(value, start=1):
            if (turn := _turn(message)) is None:
                raise InputError(
                    f"{path}, {place}: message {number} of `{column}` is no role and content, both strings: give "
                    '[{"role": "user", "content": "..."}, ...].'
                )
            turns.append(": ".join(turn))
        text = "\n\n".join(turns)
    else:
        raise InputError(
            f"{path}, {place}: `{column}` is of type {type(value).__name__}: put the document there as a string, or "
            "name another column with --set text_column=..."
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}, {place}: `{column}` escapes the lone surrogate {text[error.start]!r}, which is not a "
                "character: remove it."
            ) from None
    return text


def _columnar_values(
    path: Path, kind: str, options: TextOptions, tell: Callable[[str], None], limit: int
) -> Iterator[tuple[str, str, object]]:
    import pyarrow

    number = 0
    try:
        with _on_disk(path) as name:
            read = _parquet_arrays if kind == ".parquet" else _arrow_arrays
            for column, array in read(path, name, lambda schema: _column_of_schema(path, options, schema, tell), limit):
                _require_sane(path, _LEAST_BYTES_A_ROW * (number + len(array)), limit)
                array.validate(full=True)  # a broken one may end the process when it is read
                for scalar in array:
                    yield f"row {number + 1:,}", column, scalar.as_py()
                    number += 1
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        problem = cut(" ".join(str(error).split()), 200)
        raise InputError(
            f"{path}, after row {number:,}, is not a readable {kind} file ({problem}): write or get it again."
        ) from error


def _parquet_arrays(
    path: Path, name: str, column_of: Callable[["pyarrow.Schema"], str], limit: int
) -> Iterator[tuple[str, "pyarrow.Array"]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(name, buffer_size=_BLOCK_BYTES, pre_buffer=False, page_checksum_verification=True) as file:
        column = column_of(file.schema_arrow)
        # Not the sizes of its columns: to ask a damaged file for these ends the process.
        sizes = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
        _require_sane(path, max(sum(sizes), _LEAST_BYTES_A_ROW * file.metadata.num_rows), limit)
        for batch in file.iter_batches(_ROWS_A_BATCH, columns=[column], use_threads=False):
            yield column, batch.column(0)


def _arrow_arrays(
    path: Path, name: str, column_of: Callable[["pyarrow.Schema"], str], limit: int
) -> Iterator[tuple[str, "pyarrow.Array"]]:
    """Of a file or a stream: `datasets` writes both under this name."""
    import pyarrow.ipc

    with pyarrow.memory_map(name) as file:
        is_file = file.read(6) == b"ARROW1"
        open_ = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        file.seek(0)
        schema = open_(file).schema
        column = column_of(schema)
        file.seek(0)
        reader = open_(file, options=pyarrow.ipc.IpcReadOptions(included_fields=[schema.names.index(column)]))
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield column, batch.column(0)


def _column_of_schema(path: Path, options: TextOptions, schema: "pyarrow.Schema", tell: Callable[[str], None]) -> str:
    _require_distinct(path, schema.names)
    texts_in = [field.name for field in schema if _is_text_type(field.type)]
    return _column(path, options, schema.names, texts_in, tell)


def _is_text_type(kind: "pyarrow.DataType") -> bool:
    """True for strings and for lists of chat messages."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        struct = kind.value_type
        names = {field.name for field in struct} if types.is_struct(struct) else set()
        return names >= {"role", "content"} or names >= {"from", "value"}
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _csv_records(path: Path, texts: Iterable[str], delimiters: str) -> Iterator[tuple[str, dict[str, str]]]:
    lines = _lines(path, texts)
    first = next(lines, "")
    csv.field_size_limit(_LONGEST_LINE)
    delimiter = max(delimiters, key=first.count)  # the comma if none is there
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in rows:
            if row and not header:
                header = row
                _require_distinct(path, header)
            elif row:
                if len(row) != len(header):
                    raise InputError(
                        f"{path}, line {line:,} has {len(row):,} cells where the first line has {len(header):,}: give "
                        'all rows as many, and put cells that hold a comma or a line end between ".'
                    )
                yield f"line {line:,}", dict(zip(header, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(
            f'{path}, line {line:,} is not CSV ({error}): put cells that hold a " between ", with "" for each inside.'
        ) from error


def _json_lines(path: Path, texts: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, texts), start=1):
        if line.isspace():
            continue
        place = f"line {number:,}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, place, error) from None
        yield place, _as_record(path, place, record)


def _not_json(path: Path, place: str, error: Exception) -> InputError:
    problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return InputError(f"{path}, {place} is not JSON ({problem}): give one JSON object a line, or a list of them.")


def _as_record(path: Path, place: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f'{path}, {place} is not a JSON object: give {{"text": "..."}} for every document.')
    return value


def _json_records(path: Path, texts: Iterator[str], options: TextOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a list, of an object with a list of them, or of objects one after the other."""
    window = _JsonWindow(path, texts)
    if window.next() == "[":
        window.take("[")
        values = window.items("]")
    elif window.next() == "{" and not window.begins_with_a_line_of_many():
        values = _records_of_object(window, options)
    else:
        values = window.values()
    for place, value in values:
        yield place, _as_record(path, place, value)
    if window.next():
        raise window.error("there is more after the end of the list")


def _records_of_object(window: "_JsonWindow", options: TextOptions) -> Iterator[tuple[str, object]]:
    """The records of the one list of objects in an object; without such a list, the object is a record itself."""
    place, found = window.place(), None
    fields: dict[str, object] = {}
    window.take("{")
    for _, key in window.items("}"):
        window.take(":")
        if window.next() != "[":
            fields[str(key)] = window.value()
            continue
        window.take("[")
        if window.next() != "{" or key in (options.text_column, "messages"):
            fields[str(key)] = [value for _, value in window.items("]")]
        elif found is None:
            found = key
            yield from window.items("]")
        else:
            raise window.error(f"`{found}` and `{key}` are both lists of records, where one is expected")
    if found is None:
        yield place, fields
        yield from window.values()


class _JsonWindow:
    """A part of a JSON text that moves along it, so that values are taken one by one."""

    def __init__(self, path: Path, texts: Iterator[str]) -> None:
        self._path = path
        self._texts = texts
        self._buffer = ""
        self._at = 0
        self._line, self._counted = 1, 0  # the line at a place that is counted
        self._decode = json.JSONDecoder().raw_decode

    def place(self, ahead: int = 0) -> str:
        """The line of the next character, or of one further ahead."""
        self._line += self._buffer.count("\n", self._counted, self._at)
        self._counted = self._at
        return f"line {self._line + self._buffer.count(chr(10), self._at, self._at + ahead):,}"

    def error(self, problem: str) -> InputError:
        return _not_json(self._path, self.place(), ValueError(problem))

    def _grow(self) -> bool:
        """Add as much text as is held, so that what is read again and again at most doubles; False at the end."""
        self.place()
        parts = [self._buffer[self._at :]]
        self._at = self._counted = 0
        held = len(parts[0])
        most = 2 * held
        for text in self._texts:
            parts.append(text)
            held += len(text)
            if held > most:
                break
        self._buffer = "".join(parts)
        if held > _LONGEST_LINE + _BLOCK_BYTES:
            raise self.error(f"a value has more than {_LONGEST_LINE:,} characters")
        return len(parts) > 1

    def next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = _JSON_SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._grow():
                return ""

    def take(self, character: str) -> None:
        if self.next() != character:
            raise self.error(f"`{character}` is expected where `{self.next() or 'the end of the file'}` is")
        self._at += 1

    def value(self) -> object:
        self.next()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # It may be that the value goes on after the end of the window.
                cut_off = error.pos > len(self._buffer) - 16 or error.msg.startswith("Unterminated string")
                place = self.place(error.pos - self._at)
                if not cut_off or not self._grow():
                    raise _not_json(self._path, place, ValueError(error.msg)) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits
                raise _not_json(self._path, self.place(), error) from None
            else:
                if end == len(self._buffer) and self._grow():  # what looks like its end may be that of the window
                    continue
                self._at = min(end, len(self._buffer))
                return value

    def values(self) -> Iterator[tuple[str, object]]:
        """Values one after the other, to the end."""
        while self.next():
            yield self.place(), self.value()

    def items(self, end: str) -> Iterator[tuple[str, object]]:
        """Values with commas between them, to the bracket `end`; in an object, the keys."""
        if self.next() == end:
            self.take(end)
            return
        while True:
            self.next()
            yield self.place(), self.value()
            if self.next() == end:
                self.take(end)
                return
            self.take(",")

    def begins_with_a_line_of_many(self) -> bool:
        """True if the first line is a JSON object and another one follows."""
        while self.next() and not _LINE_AND_MORE.match(self._buffer, self._at):
            if len(self._buffer) > 2 * _BLOCK_BYTES or not self._grow():
                break
        line, _, rest = self._buffer[self._at :].partition("\n")
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return False
        return rest.lstrip().startswith("{")
