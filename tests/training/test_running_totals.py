"""Sums over training tokens."""

from mu_sota.training.running_totals import Tally


def test_tally() -> None:
    now, then = Tally(30.0, 5, 20), Tally(10.0, 1, 10)
    assert now.since(then).loss == 2.0
    assert now.accuracy == 0.25
