"""What a comparison will do: what may be asked, and a plan that fits its budget."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mu_sota import MuConfig
from mu_sota.comparison.baselines import FAMILIES, Shape
from mu_sota.comparison.contenders import Arm
from mu_sota.comparison.plan import Budget, Plan, Request, describe, make_plan, parse_budget
from mu_sota.comparison.size_matching import Parameters
from mu_sota.data.corpus import Corpus, Split
from mu_sota.data.tokenizer import train_bpe
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings, parse_assignments

RUN = load_settings("quickstart").run
LIKE = MuConfig(vocab_size=300, num_hidden_layers=2, max_position_embeddings=128)
MU = Arm("mu", "mu", "MU", LIKE, Parameters(1000, 300, 400), 7000, seconds_per_step=0.2)
GPT2 = Arm(
    "gpt2-flops",
    "gpt2",
    "GPT-2",
    FAMILIES["gpt2"].config(Shape(1, 32, 64), LIKE),
    Parameters(900, 500, 0),
    7010,
    "flops",
    1.0014,
    0.4,
)
AGAIN = dataclasses.replace(GPT2, name="control-again", matched_on=None, control_of="gpt2-flops", new_seeds=True)


def corpus() -> Corpus:
    splits = [Split(np.zeros(tokens + 1, np.uint16), 1, 1, 1) for tokens in (1_000_000, 100_000, 120_000)]
    return Corpus("made-up", "f", train_bpe(["some words of text"], 260), *splits)


CORPUS = corpus()


def plan(**asked: Any) -> Plan:
    return make_plan([MU, GPT2, AGAIN], Request(**asked), RUN, CORPUS, 8, "fp32")


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
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--budget is .*; give"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"questions": ("params", "speed")}, r"--match has 'speed'; choose among params,flops,time"),
        ({"questions": ()}, "--match is ''"),
        ({"questions": ("flops", "flops")}, "at most once"),
        ({"seeds": 0}, "--seeds is 0; give at least 1"),
        ({"seeds": 2, "controls": True}, "--controls needs at least 3 seeds, since 2"),
        ({"budget": "soon"}, "--budget is 'soon'"),
        ({"trials": 1}, "--trials is 1; give 2 to 24"),
        ({"overrides": {"learning_rate": 1.0}}, "--set learning_rate has no place in a comparison: it is tuned"),
        ({"overrides": {"num_epochs": 3}}, "--set num_epochs has no place in a comparison: give --budget"),
        ({"overrides": {"seed": 3}}, "give --seeds"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Request(**asked)


@given(minutes=st.integers(1, 5000), seeds=st.integers(2, 5), trials=st.integers(2, 24))
def test_the_plan_takes_what_the_budget_gives(minutes: int, seeds: int, trials: int) -> None:
    try:
        found = plan(budget=f"{minutes}min", seeds=seeds, trials=trials)
    except InputError as error:
        assume("already take about" not in str(error))
        raise
    assert found.seconds <= 60 * minutes
    assert found.steps >= 10
    if found.steps > 100:
        assert found.seconds > 0.85 * 60 * minutes, "rounded to two digits, so at most a tenth is left over"
        assert float(f"{found.steps:.2g}") == found.steps


def test_the_time_of_a_plan_is_that_of_its_parts() -> None:
    """With steps of 0.2 and 0.4 s, 2 settings and 2 seeds: 100 steps and 10 evaluations each; evaluation is a third."""
    found = plan(budget="100steps", seeds=2, trials=2)
    assert found.trainings == 2 * 2 + 3 * 2
    per_token = 0.2 / 3 / (16 * 128)
    curve = 0.1 * 100 * 16 * 128 * 3 / 10
    assert found.curve_tokens == pytest.approx(max(curve, 16_384), abs=1)
    once = 100 * 0.2 + (10 * found.curve_tokens + 220_000) * per_token
    tuning = 2 * (100 * 0.2 + found.curve_tokens * per_token)
    assert found.arm_seconds(MU) == pytest.approx(2 * once + tuning)
    assert found.arm_seconds(GPT2) == pytest.approx(2 * found.arm_seconds(MU))
    assert found.arm_seconds(AGAIN) == pytest.approx(2 * 2 * once), "a control is not tuned"
    assert found.seconds == sum(found.arm_seconds(arm) for arm in found.arms)


def test_overlapping_windows_of_evaluation_take_their_time() -> None:
    run = load_settings("quickstart", None, {"eval_stride": 32}).run
    asked = Request(budget="100steps", seeds=2, trials=2)
    slow = make_plan([MU, GPT2, AGAIN], asked, run, CORPUS, 8, "fp32")
    fast = plan(budget="100steps", seeds=2, trials=2)
    assert slow.evaluation_seconds(MU, 1000) == pytest.approx(4 * fast.evaluation_seconds(MU, 1000))


def test_a_control_has_seeds_of_its_own() -> None:
    found = plan(budget="100steps", seeds=3)
    assert [list(found.seeds_of(arm)) for arm in found.arms] == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]


def test_too_short_a_budget_is_refused_with_what_it_takes() -> None:
    with pytest.raises(
        InputError, match=r"--budget is '5s', but 10 steps of each of 51 trainings, .* about .*; give more"
    ):
        plan(budget="5s")
    with pytest.raises(InputError, match=r"--budget is '9steps'; give at least 10"):
        plan(budget="9steps")


def test_a_plan_survives_its_file() -> None:
    found = plan(budget="100steps")
    again = Plan.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again.as_dict() == found.as_dict()
    assert [type(arm.config) for arm in again.arms] == [type(arm.config) for arm in found.arms]
    assert again.seconds == found.seconds


def test_the_page_of_a_plan_names_every_model_with_its_size() -> None:
    page = describe(plan(budget="100steps"), RUN, CORPUS, "cpu")
    for expected in ("GPT-2, same FLOPs", "900", "500", "0.01 M", "100.14%", "0.400", "51 trainings, about"):
        assert expected in page


def test_the_command_of_a_request_can_be_typed() -> None:
    request = Request(data="my texts", overrides={"window": 64, "eval_stride": None}, controls=True, budget="100steps")
    assert request.command(Path("the out")) == (
        "mu-sota compare --preset mu-sota --data 'my texts' --match params,flops,time --seeds 3 --budget 100steps "
        "--trials 12 --controls --set window=64 --set eval_stride=null --out 'the out'"
    )
    assert parse_assignments(["eval_stride=null", "window=64"]) == request.overrides
