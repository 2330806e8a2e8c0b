"""Sums over training tokens."""

from mu_sota.training.running_totals import RunningTotals


def test_loss_and_accuracy_since_earlier_totals() -> None:
    now, then = RunningTotals(30.0, 5, 20), RunningTotals(10.0, 1, 10)
    assert now.since(then).loss == 2.0
    assert now.accuracy == 0.25
