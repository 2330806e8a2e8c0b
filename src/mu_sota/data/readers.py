"""The documents of a file, one after the other: of plain text, CSV, JSON, parquet and Arrow, also compressed.

Nothing is held that grows with the file, but for .json: a text is given in pieces, a table row by row.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mu_sota.model.errors import InputError

from .columns import text_of
from .encodings import decode, find_encoding
from .options import TABLE_SUFFIXES, TextOptions
from .raw_files import blocks, require_regular, require_sane
from .tables import LEAST_BYTES_A_ROW, values_of

PIECE_BYTES = 1_000_000
"""The most characters of a piece."""

# The tokens of a text that is cut there are those of its pieces: see `tokenizer._CUT`.
_LAST_CUT = re.compile(r"(?s:.*)\S(?=[ \n])")


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
    limit = require_regular(path)
    kind = options.kind(path)
    if kind is None:
        known = ", ".join((*options.text_suffixes, *TABLE_SUFFIXES))
        raise InputError(f"{path} is no file of text: give one that ends in {known}, or set text_suffixes.")
    if kind in TABLE_SUFFIXES:
        yield from documents_of_rows(path, values_of(path, kind, options, tell, limit), tell, limit)
        return
    encoding = find_encoding(path, lambda: blocks(path))
    if encoding.remark:
        tell(encoding.remark)
    if encoding.blank:
        tell(f"{path} is blank and was left out.")
    else:
        yield pieces_of(decode(blocks(path), encoding))


def documents_of_rows(
    path: Path | str, values: Iterable[tuple[str, str, object]], tell: Callable[[str], None], limit: int | None = None
) -> Iterator[Iterator[str]]:
    """The documents of rows, given as place, column and value; null and blank ones are left out, and counted.

    Args:
        path: of the file, or the name of a data set.
        values: as `values_of` gives them.
        tell: gets the counts.
        limit: the most bytes that they may have together.
    """
    nulls = blanks = unfolded = 0
    for place, column, value in values:
        text = text_of(path, place, column, value)
        if limit is not None:
            unfolded += LEAST_BYTES_A_ROW + len(text or "")
            require_sane(path, unfolded, limit)
        if text is None:
            nulls += 1
        elif not text or text.isspace():
            blanks += 1
        else:
            yield pieces_of([text])
    if nulls or blanks:
        counts = [f"{count:,} {what}" for count, what in ((nulls, "null"), (blanks, "blank")) if count]
        rows = "row was" if nulls + blanks == 1 else "rows were"
        tell(f"{path}: {' and '.join(counts)} {rows} left out.")


def pieces_of(texts: Iterable[str]) -> Iterator[str]:
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
