"""The checks *future* and *batch*: passes over other later tokens, or beside other rows, that must agree.

Legend: B batch, T time.
"""

from collections.abc import Iterable, Iterator

import torch

from .passes import Comparison, Pass, Passes
from .sizes import seams


def every_future(passes: Passes, tolerance: float) -> Iterator[Comparison]:
    """Every position a cut: the seams in all rows, every other position in one row."""
    at_seams = seams(passes.length)
    yield from futures(passes, at_seams)
    others = [cut for cut in range(1, passes.length) if cut not in at_seams]
    yield from futures_by_row(passes, others, tolerance)


def futures(passes: Passes, cuts: Iterable[int]) -> Iterator[Comparison]:
    """All tokens from a cut on replaced, in all rows at the same cut."""
    for cut in cuts:
        yield _future(passes, cut)


def futures_by_row(passes: Passes, cuts: list[int], tolerance: float) -> Iterator[Comparison]:
    """The same with another cut in every row: many cuts in few passes.

    A position that sees just the next one leaks at one cut only. A change above the tolerance is checked again with the
    same cut in all rows, as it could also come from the other rows.
    """
    for start in range(0, len(cuts), passes.rows):
        group = cuts[start : start + passes.rows]
        indices = passes.other_tokens(passes.indices)
        for row, cut in enumerate(group):
            indices[row, :cut] = passes.indices[row, :cut]
        theirs = passes.run(passes.to_ids(indices))
        compared = [
            passes.compare(
                Pass(passes.base, slice(row, row + 1), slice(cut)),
                Pass(theirs, slice(row, row + 1), slice(cut)),
                "later tokens change earlier predictions",
            )
            for row, cut in enumerate(group)
        ]
        worst = max(compared, key=Comparison.change)
        yield _future(passes, group[compared.index(worst)]) if worst.change() > tolerance else worst


def _future(passes: Passes, cut: int) -> Comparison:
    indices = torch.cat([passes.indices[:, :cut], passes.other_tokens(passes.indices[:, cut:])], dim=1)
    return passes.compare(
        Pass(passes.base, columns=slice(cut)),
        Pass(passes.run(passes.to_ids(indices)), columns=slice(cut)),
        f"later tokens change earlier predictions (most when those from position {cut} on are replaced)",
    )


def replaced_rows(passes: Passes) -> Iterator[Comparison]:
    """Every row with all other rows replaced."""
    for row in range(passes.rows):
        yield _with_only(passes, [row], f"the other rows of its batch change what it predicts in row {row}")


def replaced_halves(passes: Passes) -> Iterator[Comparison]:
    """Rows whose numbers share a binary digit, the others replaced: any two rows differ in some digit."""
    for bit in range((passes.rows - 1).bit_length()):
        for digit in (0, 1):
            rows = [row for row in range(passes.rows) if row >> bit & 1 == digit]
            yield _with_only(passes, rows, "other rows of its batch change what it predicts in a row")


def _with_only(passes: Passes, rows: list[int], meaning: str) -> Comparison:
    indices = passes.other_tokens(passes.indices)
    indices[rows] = passes.indices[rows]
    theirs = passes.run(passes.to_ids(indices))
    slices = [slice(row, row + 1) for row in rows]
    compared = [passes.compare(Pass(passes.base, one), Pass(theirs, one), meaning) for one in slices]
    return max(compared, key=Comparison.change) if len(compared) > 1 else compared[0]
