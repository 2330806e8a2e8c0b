"""The grid and successive halving: the same for every model, and nothing of it wasted."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mu_sota.comparison.hyperparameter_search import (
    GRID,
    LEARNING_RATES,
    Trial,
    at_edge,
    rungs,
    settings_tried,
    survivors,
)
from mu_sota.model.errors import InputError


def test_all_of_the_grid_is_tried_once() -> None:
    tried = settings_tried(24)
    assert len(set(tried)) == 24
    for trial in tried:
        assert all(value in GRID[name] for name, value in trial._asdict().items())


@given(count=st.integers(2, 24))
def test_fewer_trials_are_spread_over_the_grid(count: int) -> None:
    tried = settings_tried(count)
    assert tried == settings_tried(24)[:count]
    per_rate = [sum(trial.learning_rate == rate for trial in tried) for rate in LEARNING_RATES]
    assert max(per_rate) - min(per_rate) <= 1
    for rate in LEARNING_RATES if count >= 2 * len(LEARNING_RATES) else ():
        for name in ("weight_decay", "dropout"):
            assert {getattr(trial, name) for trial in tried if trial.learning_rate == rate} == set(GRID[name])
    if count >= 3:
        assert {trial.weight_decay for trial in tried} == set(GRID["weight_decay"])
        assert {trial.dropout for trial in tried} == set(GRID["dropout"])


@pytest.mark.parametrize("count", [1, 0, -1, 25])
def test_more_than_the_grid_holds_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"--trials is {count}; give 2 to 24"):
        settings_tried(count)


@given(trials=st.integers(2, 24), steps=st.integers(10, 5000))
def test_every_rung_has_half_the_settings_and_more_steps(trials: int, steps: int) -> None:
    plan = rungs(trials, steps)
    assert plan[0].trials == trials
    assert plan[-1].steps == steps, "the choice between the last ones is made at the length that counts"
    for before, after in pairwise(plan):
        assert after.trials == math.ceil(before.trials / 2)
        assert before.steps <= after.steps
    for before, after in pairwise(plan[:-1]):
        assert after.steps <= max(2 * before.steps + 1, 4)
    cost = sum(rung.trials * rung.steps for rung in plan)
    assert cost <= 13 * max(steps, 32), "tuning costs no more than 13 trainings"


def test_the_best_survive_in_order_and_the_diverged_never() -> None:
    assert survivors([3.0, None, 1.0, None, 2.0], 2) == [2, 4]
    assert survivors([None, 1.0], 2) == [1]
    with pytest.raises(InputError, match="all its trainings in a round of tuning diverged"):
        survivors([None, None], 1)


def test_the_edges_of_the_learning_rate() -> None:
    assert at_edge(Trial(min(LEARNING_RATES), 0.01, 0.1)) == ["learning_rate"]
    assert at_edge(Trial(max(LEARNING_RATES), 0.01, 0.1)) == ["learning_rate"]
    assert at_edge(Trial(1e-3, 0.1, 0.0)) == []
