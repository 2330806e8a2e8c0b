"""Hyperparameters of a comparison: one grid for every model, searched by successive halving on the validation split.

Every model gets the same number of trials at the same lengths. A rung trains all settings that are left, each from the
start and with the schedule of its own length, and keeps the better half (Jamieson and Talwalkar 2016, with halves). The
last rung is as long as the trainings that count, since what is best in half of their steps need not be best in all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mu_sota.model.errors import InputError


class Trial(NamedTuple):
    """Hyperparameters of a training."""

    learning_rate: float
    weight_decay: float
    dropout: float


LEARNING_RATES = (3e-3, 1e-2, 1e-3, 3e-2, 3e-4, 1e-1)  # in the order in which they are tried
_CORNERS = ((0.01, 0.1), (0.1, 0.0), (0.01, 0.0), (0.1, 0.1))  # weight decay and dropout; two by two, opposite ones
GRID = {
    "learning_rate": sorted(LEARNING_RATES),
    "weight_decay": sorted({decay for decay, _ in _CORNERS}),
    "dropout": sorted({dropout for _, dropout in _CORNERS}),
}
"""What the settings are drawn from."""

_SHORTEST = 8  # a first trial has at least an eighth of the steps


class Rung(NamedTuple):
    """Of successive halving: how many settings are tried, and optimizer steps of each."""

    trials: int
    steps: int


def settings_tried(count: int) -> list[Trial]:
    """The first `count` of the grid, in an order in which every beginning is spread over it.

    Raises:
        InputError: there are not so many, or less than 2 are asked for, which would be no tuning.
    """
    most = len(LEARNING_RATES) * len(_CORNERS)
    if not 2 <= count <= most:
        raise InputError(f"--trials is {count}; give 2 to {most}, which is all of the grid")
    # The learning rate matters most, so all its values come first; the second time round with the opposite corners, so
    # that twelve settings try each rate with both values of either.
    every = [
        Trial(rate, *_CORNERS[number % len(_CORNERS) ^ lap])
        for lap in range(len(_CORNERS))
        for number, rate in enumerate(LEARNING_RATES)
    ]
    return every[:count]


def rungs(trials: int, steps: int) -> list[Rung]:
    """Successive halving for so many settings, when the training that counts has `steps` steps.

    The last rung has all of them, the one before a quarter, and none less than 4.
    """
    depth = min(math.ceil(math.log2(trials)), int(math.log2(_SHORTEST)))
    shorter = [Rung(-(-trials // 2**level), max(steps // 2 ** (depth - level), 4)) for level in range(depth - 1)]
    return [*shorter, Rung(-(-trials // 2 ** (depth - 1)), steps)]


def survivors(losses: Sequence[float | None], keep: int) -> list[int]:
    """Numbers of the `keep` settings with the least loss, best first; None is a training that diverged.

    Raises:
        InputError: all of them diverged.
    """
    finite = [(loss, number) for number, loss in enumerate(losses) if loss is not None]
    if not finite:
        raise InputError("all its trainings in a round of tuning diverged; lower max_grad_norm with --set")
    return [number for _, number in sorted(finite)[:keep]]


def at_edge(trial: Trial) -> list[str]:
    """The learning rate, if it is the grid's lowest or highest: a better one may lie beyond."""
    return ["learning_rate"] if trial.learning_rate in (min(LEARNING_RATES), max(LEARNING_RATES)) else []
