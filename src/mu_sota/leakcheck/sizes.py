"""Sizes of the passes: rows, tokens, and the cuts from which on tokens are replaced."""

from typing import NamedTuple

import torch
from torch import Tensor

from mu_sota.model.errors import InputError

from .model_adapter import FIRST_LENGTHS, ModelUnderTest, at_some_length
from .perturbation import SIGNS

ROWS = (5, 7, 6, 8)
LENGTHS = (61, 59, 67, 53)
"""Default rows, and tokens of a row: the first that no weight has as a size, so that `locate` can tell axes apart."""

EVEN_ROWS, EVEN_LENGTH = 8, 64
"""Some models behave otherwise where rows come in pairs or the text in full chunks."""

EVEN_CUTS, SCALED_UP_CUTS = 63, 25
"""Most cuts in passes of even sizes, and with scaled-up weights."""


class Setting(NamedTuple):
    """How a model is run: `rows` x `length` tokens, its mode, with gradients or without, and the random seed."""

    rows: int
    length: int
    training: bool = False
    grad: bool = False
    seed: int = 0


def choose_sizes(tested: ModelUnderTest, rows: int | None, length: int | None) -> tuple[Setting, Setting]:
    """Two settings: one whose sizes the model takes and no weight has, and one of even sizes.

    Raises:
        InputError: the model takes no such sizes, or rows and length are equal.
    """
    widths = tested.widths()
    drawn = tested.drawn_ids()

    def rows_for(tokens: int) -> int:
        if rows is not None:
            return rows
        return next((number for number in ROWS if number not in {*widths, tokens}), ROWS[0] + (tokens == ROWS[0]))

    def attempt(tokens: int) -> Tensor:
        ids = drawn[torch.arange(rows_for(tokens) * tokens).flip(0) % len(drawn)].view(-1, tokens)
        ids[:, 0] = drawn[-1]  # the largest id, so that one too many is noticed now
        with torch.no_grad(), tested.state.mode(training=False):
            return tested.logits(ids.to(tested.device))

    limit = tested.positions
    if length is None:
        first = _default_length(widths, limit)
        others = [tokens for tokens in FIRST_LENGTHS if tokens != first and tokens <= (limit or tokens)]
        found = at_some_length([first, *others], attempt).shape[1]
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


def seams(length: int) -> list[int]:
    """Cuts that deserve all rows: the ends, and the powers of two and beside them, where kernels have their seams."""
    powers = [2**k for k in range(length.bit_length())]
    return sorted(
        {near for power in powers for near in (power - 1, power, power + 1) if 0 < near < length} | {length - 1}
    )


def some_cuts(length: int, most: int = EVEN_CUTS) -> list[int]:
    """All cuts of a short text; of a longer one the ends of chunks of 16 and the seams first."""
    cuts = [
        length - 1,
        *range(16, length, 16),
        *seams(length),
        *range(1, length, -(-length // most)),
        *range(1, length),
    ]
    return sorted(list(dict.fromkeys(cut for cut in cuts if 0 < cut < length))[:most])


def expected_passes(base: Setting, even: Setting, modules: bool) -> int:
    """About how many passes the checks make; more if the model has modules."""

    def by_row(cuts: int, setting: Setting) -> int:
        return -(-cuts // setting.rows)

    at_seams = len(seams(base.length))
    every_cut = at_seams + by_row(base.length - 1 - at_seams, base)
    at_even_sizes = by_row(min(even.length - 1, EVEN_CUTS), even) + 2 * (even.rows - 1).bit_length()
    in_eval_mode = 8 + every_cut + base.rows + at_even_sizes + 3 * base.rows + base.length // 16 + 2
    if not modules:
        return in_eval_mode
    scaled_up = 2 * len(SIGNS) * (1 + 6)
    at_other_seeds = 2 * (by_row(min(base.length - 1, EVEN_CUTS), base) + 2 * (base.rows - 1).bit_length())
    in_training_mode = by_row(base.length, base) + every_cut + base.rows + at_even_sizes + at_other_seeds
    return in_eval_mode + scaled_up + in_training_mode
