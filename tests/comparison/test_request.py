"""What a user may ask of a comparison, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from mu_sota.comparison.request import Budget, Request, parse_budget
from mu_sota.model.errors import InputError
from mu_sota.settings.load import parse_assignments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", (7200, None)),
        ("45min", (2700, None)),
        ("1.5 h", (5400, None)),
        ("90s", (90, None)),
        ("500steps", (None, 500)),
    ],
)
def test_a_budget_is_a_time_or_steps(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text", ["", "2", "h", "-2h", "0min", "2 days", "1.5steps", "1h30min", "nan h", "9" * 5000 + "steps"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--budget is .*; give"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"questions": ("params", "speed")}, r"--match has 'speed'; choose among params,flops,time"),
        ({"questions": ()}, "--match is ''"),
        ({"questions": ("flops", "flops")}, "at most once"),
        ({"seeds": 0}, "--seeds is 0; give at least 1"),
        ({"seeds": 2, "controls": True}, "--controls needs at least 3 seeds, since 2"),
        ({"budget": "soon"}, "--budget is 'soon'"),
        ({"trials": 1}, "--trials is 1; give 2 to 24"),
        ({"overrides": {"learning_rate": 1.0}}, "--set learning_rate cannot be set in a comparison: it is tuned"),
        ({"overrides": {"num_epochs": 3}}, "--set num_epochs cannot be set in a comparison: give --budget"),
        ({"overrides": {"seed": 3}}, "give --seeds"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(**asked)


def test_the_command_of_a_request_can_be_typed() -> None:
    request = Request(data="my texts", overrides={"window": 64, "eval_stride": None}, controls=True, budget="100steps")
    assert request.command(Path("the out")) == (
        "mu-sota compare --preset quickstart --data 'my texts' --match params,flops,time --seeds 3 --budget 100steps "
        "--trials 12 --controls --set window=64 --set eval_stride=null --out 'the out'"
    )
    assert parse_assignments(["eval_stride=null", "window=64"]) == request.overrides
