"""Sizes of the passes."""

import torch
from torch import Tensor

from mu_sota.model.errors import InputError

from .model_adapter import FIRST_LENGTHS, ModelUnderTest
from .passes import Setting

ROWS = (5, 7, 6, 8)
LENGTHS = (61, 59, 67, 53)
"""Default rows, and tokens of a row: the first that no weight has as a size, so that `locate` can tell axes apart."""


EVEN_ROWS, EVEN_LENGTH, EVEN_CUTS, SCALED_UP_CUTS = 8, 64, 63, 25
"""Some models do something else where rows come in pairs or the text is a whole number of chunks. Most cuts in such
passes, and in those of louder weights."""


def sizes(tested: ModelUnderTest, rows: int | None, length: int | None) -> tuple[Setting, Setting]:
    """Sizes of the passes: some that the model takes and by which `locate` can tell axes, and some that are even."""
    widths = tested.widths()
    drawn = tested.drawn_ids()

    def rows_for(tokens: int) -> int:
        if rows is not None:
            return rows
        return next((number for number in ROWS if number not in {*widths, tokens}), ROWS[0] + (tokens == ROWS[0]))

    def attempt(tokens: int) -> Tensor:
        ids = drawn[torch.arange(rows_for(tokens) * tokens).flip(0) % len(drawn)].view(-1, tokens)
        ids[:, 0] = drawn[-1]  # the largest id, so that one too many is noticed now
        with torch.no_grad(), tested.mode(training=False):
            return tested.logits(ids.to(tested.device))

    limit = tested.positions
    if length is None:
        first = _default_length(widths, limit)
        others = [tokens for tokens in FIRST_LENGTHS if tokens != first and tokens <= (limit or tokens)]
        found = tested.at_some_length([first, *others], attempt).shape[1]
        longest = min(limit or EVEN_LENGTH, EVEN_LENGTH) if found == first else found
    else:
        found = longest = length
    if rows_for(found) == found:
        raise InputError(f"rows is {found}, but must be at least 4 and another number than the {found} tokens of a row")
    even = next((longest // chunk * chunk for chunk in (64, 32, 16, 8, 4, 2) if longest >= chunk), found)
    even_rows = EVEN_ROWS if even != EVEN_ROWS else EVEN_ROWS // 2
    return Setting(rows_for(found), found), Setting(even_rows, even, grad=True, seed=1)


def _default_length(widths: set[int], positions: int | None) -> int:
    limit = positions or max(LENGTHS)
    candidates = [*LENGTHS, *range(limit, 1, -1)]
    fitting = [number for number in candidates if number <= limit]
    return next((number for number in fitting if number not in widths), fitting[0] if fitting else limit)
