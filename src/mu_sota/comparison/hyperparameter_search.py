"""Hyperparameters of a comparison: one grid for every model, searched by successive halving on the validation split.

Every model gets the same number of trials at the same lengths. A rung trains all trials that are left, each from the
start and with the schedule of its own length, and keeps the better half (Jamieson and Talwalkar 2016, with halves). The
last rung is as long as the final runs, since what is best in half of their steps need not be best in all.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mu_sota.model.errors import InputError


class Trial(NamedTuple):
    """Hyperparameters of a training run."""

    learning_rate: float
    weight_decay: float
    dropout: float


LEARNING_RATES = (3e-3, 1e-2, 1e-3, 3e-2, 3e-4, 1e-1)  # in the order in which they are tried
_DECAY_AND_DROPOUT = ((0.01, 0.1), (0.1, 0.0), (0.01, 0.0), (0.1, 0.1))  # two by two, opposite ones
GRID = {
    "learning_rate": sorted(LEARNING_RATES),
    "weight_decay": sorted({decay for decay, _ in _DECAY_AND_DROPOUT}),
    "dropout": sorted({dropout for _, dropout in _DECAY_AND_DROPOUT}),
}
"""All values that trials take."""

_MAX_HALVINGS = 3  # so the first rung has at least an eighth of the steps
_MIN_STEPS = 4


class Rung(NamedTuple):
    """A round of successive halving: the number of trials in it, and optimizer steps of each."""

    trials: int
    steps: int


def first_trials(count: int) -> list[Trial]:
    """The first `count` trials of the grid, in an order in which every beginning is spread over it.

    Raises:
        InputError: the grid has fewer, or `count` is below 2, which would be no tuning.
    """
    most = len(LEARNING_RATES) * len(_DECAY_AND_DROPOUT)
    if not 2 <= count <= most:
        raise InputError(f"--trials is {count}; give 2 to {most}, which is all of the grid")
    # The learning rate matters most, so all its values come first; the second time round with the opposite pairs, so
    # that twelve trials have each rate with both values of either.
    grid = [
        Trial(rate, *_DECAY_AND_DROPOUT[number % len(_DECAY_AND_DROPOUT) ^ lap])
        for lap in range(len(_DECAY_AND_DROPOUT))
        for number, rate in enumerate(LEARNING_RATES)
    ]
    return grid[:count]


def make_rungs(trials: int, steps: int) -> list[Rung]:
    """The rungs for a number of trials, when final runs have `steps` steps.

    The last rung has all of the steps, the one before it a quarter; none has fewer than 4.
    """
    depth = min(math.ceil(math.log2(trials)), _MAX_HALVINGS)
    shorter = [
        Rung(-(-trials // 2**level), max(steps // 2 ** (depth - level), _MIN_STEPS)) for level in range(depth - 1)
    ]
    return [*shorter, Rung(-(-trials // 2 ** (depth - 1)), steps)]


def successive_halving(
    trials: list[Trial], rungs: Sequence[Rung], train: Callable[[int, int, Trial], float | None]
) -> Trial:
    """The best trial of the last rung.

    Args:
        train: called with the number of the rung, the number of the trial in it, and the trial; returns its validation
            loss, or None if it diverged.

    Raises:
        InputError: all trials of a rung diverged.
    """
    for level in range(len(rungs)):
        losses = [train(level, number, trial) for number, trial in enumerate(trials)]
        trials = [trials[number] for number in _best(losses, -(-len(trials) // 2))]
    return trials[0]


def _best(losses: Sequence[float | None], keep: int) -> list[int]:
    """Numbers of the `keep` trials with the least loss, best first; those that diverged are never kept."""
    finite = sorted((loss, number) for number, loss in enumerate(losses) if loss is not None)
    if not finite:
        raise InputError("all its trials in a round of tuning diverged; lower max_grad_norm with --set")
    return [number for _, number in finite[:keep]]


def at_grid_edge(trial: Trial) -> list[str]:
    """The learning rate, if it is the grid's lowest or highest: a better one may lie beyond."""
    return ["learning_rate"] if trial.learning_rate in (min(LEARNING_RATES), max(LEARNING_RATES)) else []
