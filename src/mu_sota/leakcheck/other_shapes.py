"""The checks *row alone* and *length*: passes over single rows and over beginnings of the text.

Legend: B batch, T time.
"""

from collections.abc import Iterator

from .passes import Comparison, Pass, Passes


def single_rows(passes: Passes) -> Iterator[Comparison]:
    """Every row in a batch of its own."""
    for row in range(passes.rows):
        one = slice(row, row + 1)
        yield passes.compare(
            Pass(passes.base, rows=one),
            Pass(passes.run(passes.ids[one])),
            f"row {row} alone gives other predictions than the same row among others",
        )


def prefixes(passes: Passes) -> Iterator[Comparison]:
    """Beginnings of the text, full chunks of 16 among them."""
    length = passes.length
    cuts = {1, 2, length // 3, length // 2, length - 1, *range(16, length, 16)}
    for cut in sorted(cuts - {0, length}, reverse=True):  # the longest first: a short text may be refused
        yield passes.compare(
            Pass(passes.base, columns=slice(cut)),
            Pass(passes.run(passes.ids[:, :cut])),
            f"a text of length {cut} gives other predictions than the same tokens at the start of a longer one",
        )
