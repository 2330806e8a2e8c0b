"""Means, intervals and paired differences, against scipy's own and against what a test promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mu_sota.comparison.statistics import compare_losses, summarise

losses = st.floats(0.1, 20, allow_subnormal=False)
pairs = st.lists(st.tuples(losses, losses), min_size=2, max_size=8)


@given(values=st.lists(losses, min_size=2, max_size=8, unique=True))
def test_the_interval_is_student_s(values: list[float]) -> None:
    found = summarise(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-9)


@given(values=pairs)
def test_the_test_is_the_paired_t_test_and_agrees_with_its_interval(values: list[tuple[float, float]]) -> None:
    ours, theirs = (list(side) for side in zip(*values, strict=True))
    found = compare_losses(ours, theirs)
    differences = np.subtract(ours, theirs)
    assert found.values == pytest.approx(list(differences))
    if np.ptp(differences) > 1e-6:
        expected = stats.ttest_rel(ours, theirs)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
        assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95), rel=1e-6, abs=1e-9)
    assert found.low is not None
    assert found.high is not None
    shown = {"better": found.high < 0, "worse": found.low > 0}
    assert found.outcome == next((outcome for outcome, holds in shown.items() if holds), "no difference shown")


@given(values=pairs)
def test_swapped_models_give_the_opposite_outcome(values: list[tuple[float, float]]) -> None:
    ours, theirs = (list(side) for side in zip(*values, strict=True))
    opposite = {"better": "worse", "worse": "better"}
    outcome = compare_losses(ours, theirs).outcome
    assert compare_losses(theirs, ours).outcome == opposite.get(outcome, outcome)


def test_one_in_twenty_pairs_of_equal_models_differs() -> None:
    draws = np.random.default_rng(0).normal(5, 0.01, (2000, 2, 3))
    called = sum(compare_losses(*draw.tolist()).outcome != "no difference shown" for draw in draws)
    assert called / 2000 == pytest.approx(0.05, abs=0.015)


def test_one_seed_shows_nothing() -> None:
    found = compare_losses([1.0], [9.0])
    assert (found.mean, found.low, found.p, found.outcome) == (-8.0, None, None, "no difference shown")


def test_the_same_values_twice_are_no_difference() -> None:
    assert compare_losses([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])[1:] == (0.0, 0.0, 0.0, 1.0, "no difference shown")


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        compare_losses([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no values"):
        summarise([])
