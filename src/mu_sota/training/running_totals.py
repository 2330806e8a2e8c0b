"""Training tokens so far, and what they sum to."""

import math
from typing import NamedTuple


class RunningTotals(NamedTuple):
    """Training tokens so far: summed loss in nats, right predictions, tokens."""

    nll: float = 0.0
    num_correct: float = 0.0
    num_tokens: float = 0.0

    def since(self, other: "RunningTotals") -> "RunningTotals":
        """What was added to `other`."""
        return RunningTotals(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.num_tokens if self.num_tokens else math.nan

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return self.num_correct / self.num_tokens if self.num_tokens else math.nan
