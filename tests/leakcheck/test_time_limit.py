"""The time limit and the progress of a check."""

import math
from itertools import count

import pytest
import torch
from planted import CLEAN, planted, results, running_mean

from mu_sota import InputError
from mu_sota.leakcheck.checks import check


@pytest.mark.parametrize("seconds", [0.5, 12.5, 37.5])
def test_time_limit_before_future_and_batch_are_done_is_an_error(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on by a second whenever it is looked at: once a pass, and once at the start."""
    monkeypatch.setattr("mu_sota.leakcheck.time_limit.time.monotonic", count(0.0).__next__)
    with pytest.raises(
        InputError, match=f"the time limit of {seconds} seconds was reached; give more with --time-limit"
    ):
        check(CLEAN["attention"](), time_limit=seconds)


@pytest.mark.parametrize("seconds", [70.5, 100.5, 120.5, 200.5])
def test_checks_after_the_time_limit_are_skipped(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu_sota.leakcheck.time_limit.time.monotonic", count(0.0).__next__)
    torch.manual_seed(0)
    report = check(CLEAN["attention"](), time_limit=seconds)
    over = [result for result in report.results if "the time limit of" in result.meaning]
    assert len(report.results) == 11
    assert over[-1] is report.results[-1]
    assert all(result.verdict == "skipped" for result in over)
    assert report.clean


def test_leak_found_before_the_time_limit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu_sota.leakcheck.time_limit.time.monotonic", count(0.0).__next__)
    report = check(planted("no mask"), time_limit=15.5)
    assert results(report)["future"].verdict == "leak"
    assert results(report)["batch"].verdict == "skipped"


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_time_limit_must_be_above_0(limit: float) -> None:
    with pytest.raises(InputError, match=r"time_limit=\) is .*, but must be a number of seconds above 0"):
        check(running_mean, time_limit=limit)


def test_progress_is_called_at_every_pass() -> None:
    told: list[tuple[int, int, str]] = []
    torch.manual_seed(0)
    check(CLEAN["GPT-2"](), progress=lambda *said: told.append(said))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert all(done <= expected for done, expected, _ in told)
    names = list(dict.fromkeys(check for _, _, check in told))
    assert names[:3] == ["future", "batch", "row alone"]
    assert names[-1] == "batch (training)"
