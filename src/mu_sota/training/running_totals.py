"""Sums over the training tokens so far, from which loss and accuracy are computed."""

import math
from typing import NamedTuple


class RunningTotals(NamedTuple):
    """Sums over training tokens.

    Attributes:
        nll: negative log-likelihood, in nats.
        num_correct: tokens predicted right.
        num_tokens: tokens predicted.
    """

    nll: float = 0.0
    num_correct: float = 0.0
    num_tokens: float = 0.0

    def since(self, earlier: "RunningTotals") -> "RunningTotals":
        """The sums over the tokens that came after `earlier`."""
        return RunningTotals(*(now - then for now, then in zip(self, earlier, strict=True)))

    @property
    def loss(self) -> float:
        """Nats per token; NaN where there is none."""
        return self.nll / self.num_tokens if self.num_tokens else math.nan

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right; NaN where there is none."""
        return self.num_correct / self.num_tokens if self.num_tokens else math.nan
