"""The time left, when some of the work was done before."""

import math

import pytest

from mu_sota.comparison.progress import ProgressBar


def test_skipped_work_does_not_shorten_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and half of one are done; the other half takes twice as long as planned, so will what is left."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    bar = ProgressBar(1000.0)
    bar.skip(700.0)
    bar.begin("a training", 100, 200.0)
    for step in range(51, 101):
        now[0] += 4.0
        bar.tick(step, math.nan)
    text = str(bar.bar)
    bar.close()
    assert " 90% " in text
    assert "03:20 so far, 03:20 left" in text
