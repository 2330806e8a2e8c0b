"""The grid and successive halving: the same for every model, and nothing of it wasted."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mu_sota.comparison.hyperparameter_search import (
    GRID,
    LEARNING_RATES,
    Rung,
    Trial,
    at_grid_edge,
    first_trials,
    make_rungs,
    successive_halving,
)
from mu_sota.model.errors import InputError


def test_24_trials_are_the_grid() -> None:
    tried = first_trials(24)
    assert len(set(tried)) == 24
    for trial in tried:
        assert all(value in GRID[name] for name, value in trial._asdict().items())


@given(count=st.integers(2, 24))
def test_fewer_trials_are_spread_over_the_grid(count: int) -> None:
    tried = first_trials(count)
    assert tried == first_trials(24)[:count]
    per_rate = [sum(trial.learning_rate == rate for trial in tried) for rate in LEARNING_RATES]
    assert max(per_rate) - min(per_rate) <= 1
    for rate in LEARNING_RATES if count >= 2 * len(LEARNING_RATES) else ():
        for name in ("weight_decay", "dropout"):
            assert {getattr(trial, name) for trial in tried if trial.learning_rate == rate} == set(GRID[name])
    if count >= 3:
        assert {trial.weight_decay for trial in tried} == set(GRID["weight_decay"])
        assert {trial.dropout for trial in tried} == set(GRID["dropout"])


@pytest.mark.parametrize("count", [1, 0, -1, 25])
def test_a_number_of_trials_that_the_grid_does_not_have_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"--trials is {count}; give 2 to 24"):
        first_trials(count)


@given(trials=st.integers(2, 24), steps=st.integers(10, 5000))
def test_every_rung_has_half_the_settings_and_more_steps(trials: int, steps: int) -> None:
    plan = make_rungs(trials, steps)
    assert plan[0].trials == trials
    assert plan[-1].steps == steps, "the choice between the last ones is made at the length of the final runs"
    for before, after in pairwise(plan):
        assert after.trials == math.ceil(before.trials / 2)
        assert before.steps <= after.steps
    for before, after in pairwise(plan[:-1]):
        assert after.steps <= max(2 * before.steps + 1, 4)
    cost = sum(rung.trials * rung.steps for rung in plan)
    assert cost <= 13 * max(steps, 32), "tuning costs no more than 13 trainings"


def test_successive_halving_keeps_the_better_half_and_never_a_trial_that_diverged() -> None:
    trials = first_trials(5)
    losses = dict(zip(trials, [3.0, None, 1.0, None, 2.0], strict=True))
    trained: list[tuple[int, int, Trial]] = []

    def train(level: int, number: int, trial: Trial) -> float | None:
        trained.append((level, number, trial))
        return losses[trial]

    assert successive_halving(trials, [Rung(5, 4), Rung(3, 8), Rung(2, 16)], train) == trials[2]
    assert trained[5:] == [
        *((1, number, trials[kept]) for number, kept in enumerate((2, 4, 0))),
        *((2, number, trials[kept]) for number, kept in enumerate((2, 4))),
    ]


def test_tuning_in_which_every_trial_diverges_is_refused() -> None:
    with pytest.raises(InputError, match="all its trials in a round of tuning diverged"):
        successive_halving(first_trials(2), [Rung(2, 4)], lambda *_: None)


def test_a_learning_rate_at_the_grid_edge_is_found() -> None:
    assert at_grid_edge(Trial(min(LEARNING_RATES), 0.01, 0.1)) == ["learning_rate"]
    assert at_grid_edge(Trial(max(LEARNING_RATES), 0.01, 0.1)) == ["learning_rate"]
    assert at_grid_edge(Trial(1e-3, 0.1, 0.0)) == []
