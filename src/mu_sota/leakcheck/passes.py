"""Passes through a model under test that must agree: other later tokens, other rows, one row, a shorter text.

Legend: B batch, T time, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import set_seed

from mu_sota.model.errors import InputError

from .logits import change, spread
from .model_adapter import ModelUnderTest
from .random_state import random_position
from .time_limit import PassCounter

EVERYTHING = slice(None)


class Run:
    """One run of a model: calling it runs, `logits` runs once and keeps them until it is told to forget.

    Args:
        function: gives the logits [B, T, V].
        size: (B, T) of the tensors inside the model; of its last call, if `function` calls it several times.
        grad: whether gradients are recorded, as in training.
    """

    def __init__(self, function: Callable[[], Tensor], size: tuple[int, int], grad: bool = False) -> None:
        self.function, self.size, self.grad = function, size, grad
        self.random_state_after: int | None = None
        """Where the random generators stood when it ended."""

    def __call__(self) -> Tensor:
        with torch.set_grad_enabled(self.grad):
            return self.function().detach()

    @cached_property
    def logits(self) -> Tensor:
        return self()

    def forget(self) -> None:
        vars(self).pop("logits", None)


class Pass(NamedTuple):
    """A run, and the rows of the batch and the positions of it that are held against another pass."""

    run: Run
    rows: slice = EVERYTHING
    columns: slice = EVERYTHING

    def logits(self) -> Tensor:
        """The compared part of the logits."""
        return self.run.logits[self.rows, self.columns]

    def run_again(self) -> Tensor:
        """The same, computed anew."""
        return self.run()[self.rows, self.columns]


class Setting(NamedTuple):
    """How a model is run: `rows` x `length` tokens, its mode, with gradients or without, and the random seed."""

    rows: int
    length: int
    training: bool = False
    grad: bool = False
    seed: int = 0


class Comparison(NamedTuple):
    """Two passes that must be equal, what it means if they are not, and the standard deviation of their logits."""

    ours: Pass
    theirs: Pass
    meaning: str
    scale: float

    @property
    def of_one_shape(self) -> bool:
        return self.ours.run.size == self.theirs.run.size

    def change(self) -> float:
        """How far the logits move, in their standard deviations."""
        return change(self.ours.logits(), self.theirs.logits()) / self.scale

    def again(self) -> float:
        """The same, both passes run anew."""
        return change(self.ours.run_again(), self.theirs.run_again()) / self.scale


class Passes:
    """Passes in one setting, all beside the same `base`: B x T random tokens.

    Raises:
        InputError: the model raised, or its logits are no use.
    """

    def __init__(self, tested: ModelUnderTest, setting: Setting, counter: PassCounter) -> None:
        self.tested, self.setting, self.counter = tested, setting, counter
        self.rows, self.length = setting.rows, setting.length
        self.generator = torch.Generator().manual_seed(setting.seed)
        self.drawn = tested.drawn_ids()
        # Where in `drawn` an id stands, so that "any other token" is a sum.
        self.indices = torch.randint(len(self.drawn), (self.rows, self.length), generator=self.generator)
        self.ids = self.to_ids(self.indices)
        self.base = self.run(self.ids)
        logits = self.base.logits
        if logits.isnan().any():
            raise InputError("the model's logits hold NaN, so nothing can be said of it; check its weights")
        self.scale = spread(logits)
        if not self.scale:
            raise InputError(
                "the model gives the same logits whatever the tokens, so no leak could show; "
                "give it weights through which they can show"
            )

    def run(self, ids: Tensor, *, seed: int | None = None, **inputs: Any) -> Run:
        """A pass over ids [B, T]; every pass of a setting has the same random seed."""

        def function() -> Tensor:
            self.counter.begin_pass()
            with self.tested.mode(self.setting.training):
                self.seed(self.setting.seed if seed is None else seed)
                logits = self.tested.logits(ids, **inputs)
            run.random_state_after = random_position(self.tested.device)
            return logits

        run = Run(function, (ids.shape[0], ids.shape[1]), self.setting.grad)
        return run

    def seed(self, seed: int) -> None:
        """Of all that a model may draw from; its own generators keep their state at the seed 0."""
        set_seed(seed)
        if seed:
            self.tested.reseed(seed)

    def to_ids(self, indices: Tensor) -> Tensor:
        return self.drawn[indices].to(self.tested.device)

    def other_tokens(self, indices: Tensor) -> Tensor:
        """At every position a random token that is another one."""
        count = len(self.drawn)
        return (indices + torch.randint(1, count, indices.shape, generator=self.generator)) % count

    def futures(self, cuts: Iterable[int]) -> Iterator[Comparison]:
        """Every token from a cut on replaced, in all rows at the same cut."""
        for cut in cuts:
            yield self.future(cut)

    def future(self, cut: int) -> Comparison:
        """Every token from this cut on replaced, in all rows."""
        indices = torch.cat([self.indices[:, :cut], self.other_tokens(self.indices[:, cut:])], dim=1)
        return self._compared(
            Pass(self.base, columns=slice(cut)),
            Pass(self.run(self.to_ids(indices)), columns=slice(cut)),
            f"later tokens change earlier predictions (most when those from position {cut} on are replaced)",
        )

    def futures_by_row(self, cuts: Iterable[int], tolerance: float) -> Iterator[Comparison]:
        """The same with another cut in every row, for as many cuts in few passes.

        A position that sees just the next one is found by one cut only. What moves by more than the tolerance is asked
        again with the same cut in all rows: else it could also come from what the other rows see.
        """
        waiting = list(cuts)
        while waiting:
            group, waiting = waiting[: self.rows], waiting[self.rows :]
            indices = self.other_tokens(self.indices)
            for row, cut in enumerate(group):
                indices[row, :cut] = self.indices[row, :cut]
            theirs = self.run(self.to_ids(indices))
            compared = [
                self._compared(
                    Pass(self.base, slice(row, row + 1), slice(cut)),
                    Pass(theirs, slice(row, row + 1), slice(cut)),
                    "later tokens change earlier predictions",
                )
                for row, cut in enumerate(group)
            ]
            worst = max(compared, key=Comparison.change)
            yield self.future(group[compared.index(worst)]) if worst.change() > tolerance else worst

    def replaced_rows(self) -> Iterator[Comparison]:
        """Every row beside others."""
        for row in range(self.rows):
            yield self._with_only([row], f"the other rows of its batch change what it predicts in row {row}")

    def replaced_halves(self) -> Iterator[Comparison]:
        """Rows whose number has the same digit in base 2 beside others: any two rows are told apart by some digit."""
        for bit in range((self.rows - 1).bit_length()):
            for digit in (0, 1):
                rows = [row for row in range(self.rows) if row >> bit & 1 == digit]
                yield self._with_only(rows, "other rows of its batch change what it predicts in a row")

    def _with_only(self, rows: list[int], meaning: str) -> Comparison:
        indices = self.other_tokens(self.indices)
        indices[rows] = self.indices[rows]
        kept = [slice(row, row + 1) for row in rows]
        theirs = self.run(self.to_ids(indices))
        compared = [self._compared(Pass(self.base, one), Pass(theirs, one), meaning) for one in kept]
        return max(compared, key=Comparison.change) if len(compared) > 1 else compared[0]

    def single_rows(self) -> Iterator[Comparison]:
        """Every row in a batch of its own."""
        for row in range(self.rows):
            one = slice(row, row + 1)
            yield self._compared(
                Pass(self.base, rows=one),
                Pass(self.run(self.ids[one])),
                f"row {row} alone gives other predictions than the same row among others",
            )

    def prefixes(self) -> Iterator[Comparison]:
        """Beginnings of the text, whole chunks of 16 among them."""
        cuts = {1, 2, self.length // 3, self.length // 2, self.length - 1, *range(16, self.length, 16)}
        for cut in sorted(cuts - {0, self.length}, reverse=True):  # the longest first: a short text may be refused
            yield self._compared(
                Pass(self.base, columns=slice(cut)),
                Pass(self.run(self.ids[:, :cut])),
                f"a text of length {cut} gives other predictions than the same tokens at the start of a longer one",
            )

    def _compared(self, ours: Pass, theirs: Pass, meaning: str) -> Comparison:
        return Comparison(ours, theirs, meaning, self.scale)


def seams(length: int) -> list[int]:
    """Cuts that deserve all rows: the ends, and the powers of two and beside them, where kernels have their seams."""
    powers = [2**k for k in range(length.bit_length())]
    return sorted(
        {near for power in powers for near in (power - 1, power, power + 1) if 0 < near < length} | {length - 1}
    )
