"""Passes through a model under test, and comparisons of two of them.

Legend: B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import set_seed

from mu_sota.model.errors import InputError

from .logits import change, spread
from .model_adapter import ModelUnderTest
from .random_state import random_state_hash
from .sizes import Setting
from .time_limit import PassCounter

EVERYTHING = slice(None)

SAME_LOGITS = (
    "the model gives the same logits whatever the tokens, so no leak could show; "
    "give it weights through which they can show"
)


class Run:
    """One run of a model. A call runs it; `logits` runs it once and keeps the result until `forget`.

    Args:
        function: gives the logits [B, T, V].
        size: (B, T) of the tensors inside the model; of its last call, if `function` calls it several times.
        grad: record gradients, as in training.

    Attributes:
        random_state_after: a hash of the global random generators when it ended.
    """

    def __init__(self, function: Callable[[], Tensor], size: tuple[int, int], grad: bool = False) -> None:
        self.function, self.size, self.grad = function, size, grad
        self.random_state_after: int | None = None

    def __call__(self) -> Tensor:
        with torch.set_grad_enabled(self.grad):
            return self.function().detach()

    @cached_property
    def logits(self) -> Tensor:
        return self()

    def forget(self) -> None:
        vars(self).pop("logits", None)


class Pass(NamedTuple):
    """A run, and its rows and positions that are compared with those of another pass."""

    run: Run
    rows: slice = EVERYTHING
    columns: slice = EVERYTHING

    def logits(self) -> Tensor:
        """The compared part of the logits."""
        return self.run.logits[self.rows, self.columns]

    def run_again(self) -> Tensor:
        """The same part from a new run."""
        return self.run()[self.rows, self.columns]


class Comparison(NamedTuple):
    """Two passes that must be equal, the meaning of a difference, and the standard deviation of their logits."""

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
        """The same from new runs of both passes."""
        return change(self.ours.run_again(), self.theirs.run_again()) / self.scale


class Passes:
    """Passes in one setting, each compared with the pass `base` over B x T random tokens.

    Args:
        tested: the model.
        setting: sizes, mode, seed.
        counter: counts the passes.

    Attributes:
        ids: [B, T], the tokens of `base`.
        drawn: the ids that tokens are drawn from.
        indices: [B, T], of `ids` in `drawn`, so that any other token is an addition.
        scale: the standard deviation of the logits of `base`.

    Raises:
        InputError: the model raised, or its logits are NaN or all the same.
    """

    def __init__(self, tested: ModelUnderTest, setting: Setting, counter: PassCounter) -> None:
        self.tested, self.setting, self.counter = tested, setting, counter
        self.rows, self.length = setting.rows, setting.length
        self.generator = torch.Generator().manual_seed(setting.seed)
        self.drawn = tested.drawn_ids()
        self.indices = torch.randint(len(self.drawn), (self.rows, self.length), generator=self.generator)
        self.ids = self.to_ids(self.indices)
        self.base = self.run(self.ids)
        logits = self.base.logits
        if logits.isnan().any():
            raise InputError("the model's logits hold NaN, so nothing can be said of it; check its weights")
        self.scale = spread(logits)
        if not self.scale:
            raise InputError(SAME_LOGITS)

    def run(self, ids: Tensor, *, seed: int | None = None, **inputs: Any) -> Run:
        """A run over ids [B, T], by default with the random seed of the setting."""

        def function() -> Tensor:
            self.counter.begin_pass()
            with self.tested.state.mode(self.setting.training):
                self.seed(self.setting.seed if seed is None else seed)
                logits = self.tested.logits(ids, **inputs)
            run.random_state_after = random_state_hash(self.tested.device)
            return logits

        run = Run(function, (ids.shape[0], ids.shape[1]), self.setting.grad)
        return run

    def seed(self, seed: int) -> None:
        """Seed all generators that a model may draw from; its own keep their state if the seed is 0."""
        set_seed(seed)
        if seed:
            self.tested.state.reseed(seed)

    def to_ids(self, indices: Tensor) -> Tensor:
        return self.drawn[indices].to(self.tested.device)

    def other_tokens(self, indices: Tensor) -> Tensor:
        """At every position another token, drawn at random."""
        count = len(self.drawn)
        return (indices + torch.randint(1, count, indices.shape, generator=self.generator)) % count

    def compare(self, ours: Pass, theirs: Pass, meaning: str) -> Comparison:
        return Comparison(ours, theirs, meaning, self.scale)
