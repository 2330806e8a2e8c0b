"""The learning rate of every step: a cycle or a constant rate for the run, and again for what a run is extended by."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_START, _END = 25, 250_000  # the peak is divided by these
_WARMUP_SHARE = 0.3  # of a part that is no longer than the warm-up
_COOLDOWN_SHARE = 0.2


class Part(NamedTuple):
    """A part of a schedule.

    Attributes:
        end: the step after its last one, counted from the start of the run.
        shape: cycle or constant.
    """

    end: int
    shape: str


class Schedule(LRScheduler):
    """The parts one after another, each from its own warm-up to its own end.

    Args:
        optimizer: whose rate is set; `step()` follows each of its steps.
        peak: highest learning rate.
        warmup_steps: of each part, those up to the peak.
        parts: in their order, each of at least one step.
    """

    def __init__(self, optimizer: Optimizer, peak: float, warmup_steps: int, parts: Sequence[Part]) -> None:
        self.peak, self.warmup_steps, self.parts = peak, warmup_steps, list(parts)
        for group in optimizer.param_groups:
            group["initial_lr"] = peak
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        """Of a step, counted from 0; after the last part, that of its last step."""
        starts = [0, *(part.end for part in self.parts)]
        for (start, end), part in zip(pairwise(starts), self.parts, strict=True):
            if step < end:
                return _SHAPES[part.shape](step - start, end - start, self.peak, self.warmup_steps)
        return self.rate(self.parts[-1].end - 1)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """As `LRScheduler` asks for it."""
        return [self.rate(self.last_epoch)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """How far it is; the parts come from the run."""
        return {name: getattr(self, name) for name in ("last_epoch", "_step_count", "_last_lr")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after a checkpoint, whose next rate may now be another: the run may have been extended."""
        self.__dict__.update({name: state_dict[name] for name in ("last_epoch", "_step_count")})
        self._last_lr = list(self.get_lr())
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def one_cycle(step: int, steps: int, peak: float, warmup_steps: int) -> float:
    """From peak / 25 along half a cosine up to the peak, then along another half down to peak / 250,000.

    The peak comes after `warmup_steps`; in a part of no more steps than that, after 30 % of them. Smith and Topin 2017,
    "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", arXiv:1708.07120, with the
    cosines of PyTorch's `OneCycleLR` in place of straight lines, and a constant momentum.

    Args:
        step: counted from 0.
        steps: of the part.
        peak: highest learning rate.
        warmup_steps: of the steps, those up to the peak.
    """
    steps = max(steps, 4)  # the least that has both phases
    warmup = warmup_steps if warmup_steps < steps else round(_WARMUP_SHARE * steps)
    top = max(warmup, 2) / steps * steps - 1
    if step <= top:
        return _cosine(peak / _START, peak, step / top)
    return _cosine(peak, peak / _START / (_END // _START), (step - top) / (steps - 1 - top))


def constant(step: int, steps: int, peak: float, warmup_steps: int) -> float:
    """Straight up to the peak, constant, and over the last fifth down to nothing as 1 - the root of the way.

    Haegele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", arXiv:2405.18392.
    The arguments are those of `one_cycle`.
    """
    warmup = warmup_steps if warmup_steps < steps else round(_WARMUP_SHARE * steps)
    cooldown = max(round(_COOLDOWN_SHARE * steps), 1)
    up = (step + 1) / (warmup + 1)
    down = 1 - math.sqrt(max(step - (steps - cooldown) + 1, 0) / (cooldown + 1))
    return peak * min(up, down, 1.0)


_SHAPES = {"cycle": one_cycle, "constant": constant}


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
