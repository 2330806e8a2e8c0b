"""The values of the column with the texts, row by row: of CSV, JSON, parquet and Arrow files."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mu_sota.model.errors import InputError, cut

from .columns import all_texts, choose_column, listed, require_distinct
from .encodings import decode, find_encoding
from .options import TextOptions
from .raw_files import BLOCK_BYTES, blocks, on_disk, require_sane, unreadable

if TYPE_CHECKING:
    import pyarrow

LEAST_BYTES_A_ROW = 64
"""That a row counts for, so that rows without end are noticed."""

_LONGEST_LINE = 100_000_000  # characters, also of a cell of a .csv file, and of all of a .json file
_ROWS_A_BATCH = 16  # of parquet: where rows share a text, memory holds it that often
_ROWS_TO_KNOW = 100  # from which the column with the texts is chosen where none has a name that says it


def values_of(
    path: Path, kind: str, options: TextOptions, tell: Callable[[str], None], limit: int
) -> Iterator[tuple[str, str, object]]:
    """Of every row: its place (`line 3`), the name of the column with the text, and what is there."""
    if kind in (".parquet", ".arrow"):
        yield from _columnar_values(path, kind, options, tell, limit)
        return
    encoding = find_encoding(path, lambda: blocks(path))
    if encoding.remark:
        tell(encoding.remark)
    texts = decode(blocks(path), encoding)
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
    texts_in = [name for name, values in by_name.items() if all_texts(values, numbers=kind in (".csv", ".tsv"))]
    column = choose_column(path, options, list(by_name), texts_in, tell)
    for place, fields in chain(first, records):
        if column not in fields:
            raise InputError(
                f"{path}, {place} has no `{column}`, only {listed(fields)}: give every record one, or another with "
                "--set text_column=..."
            )
        yield place, column, fields[column]


def _columnar_values(
    path: Path, kind: str, options: TextOptions, tell: Callable[[str], None], limit: int
) -> Iterator[tuple[str, str, object]]:
    import pyarrow

    number = 0
    try:
        with on_disk(path) as name:
            read = _parquet_arrays if kind == ".parquet" else _arrow_arrays
            for column, array in read(path, name, lambda schema: _column_of_schema(path, options, schema, tell), limit):
                require_sane(path, LEAST_BYTES_A_ROW * (number + len(array)), limit)
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

    with ParquetFile(name, buffer_size=BLOCK_BYTES, pre_buffer=False, page_checksum_verification=True) as file:
        column = column_of(file.schema_arrow)
        # Not the sizes of its columns: to ask a damaged file for these ends the process.
        sizes = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
        require_sane(path, max(sum(sizes), LEAST_BYTES_A_ROW * file.metadata.num_rows), limit)
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
    require_distinct(path, schema.names)
    texts_in = [field.name for field in schema if _is_text_type(field.type)]
    return choose_column(path, options, schema.names, texts_in, tell)


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
                require_distinct(path, header)
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


def _json_records(path: Path, texts: Iterable[str], options: TextOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a list, of an object with one list of them, or of objects on lines of their own."""
    lines = _lines(path, texts)
    first = next((line for line in lines if not line.isspace()), "")
    if not first:
        return
    second = next((line for line in lines if not line.isspace()), "")
    if first.lstrip().startswith("{") and second.lstrip().startswith("{") and _is_json(first):
        yield from _json_lines(path, chain([first, second], lines))
        return
    whole, size = [first, second], 0
    for line in lines:
        whole.append(line)
        if (size := size + len(line)) > _LONGEST_LINE:
            raise InputError(
                f"{path} has more than {_LONGEST_LINE:,} characters, and a .json file is read as a whole: write it as "
                "JSON lines, one object a line (.jsonl)."
            )
    try:
        value = json.loads("".join(whole))
    except (ValueError, RecursionError) as error:
        raise _not_json(path, f"line {getattr(error, 'lineno', 1):,}", error) from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list) and all(map(_is_object, inner[:1]))]
        is_record = len(lists) != 1 or not {"text", "messages", options.text_column}.isdisjoint(value)
        value = [value] if is_record else lists[0]
    if not isinstance(value, list):
        raise _not_json(path, "line 1", ValueError("neither a list nor an object"))
    for number, record in enumerate(value, start=1):
        yield f"record {number:,}", _as_record(path, f"record {number:,}", record)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _not_json(path: Path, place: str, error: Exception) -> InputError:
    problem = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return InputError(f"{path}, {place} is not JSON ({problem}): give one JSON object a line, or a list of them.")


def _as_record(path: Path, place: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f'{path}, {place} is not a JSON object: give {{"text": "..."}} for every document.')
    return value


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
