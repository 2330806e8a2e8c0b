"""The plan of a comparison fits its budget, and survives its file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mu_sota import MuConfig
from mu_sota.comparison.baselines import FAMILIES, Shape, tables_of
from mu_sota.comparison.contenders import Contender
from mu_sota.comparison.folder import ComparisonFolder
from mu_sota.comparison.inputs import Inputs
from mu_sota.comparison.plan import Plan, describe, fit_to_budget
from mu_sota.comparison.request import Request
from mu_sota.comparison.size_matching import Parameters
from mu_sota.data.corpus import Corpus, Split
from mu_sota.data.tokenizer import train_bpe
from mu_sota.data.windows import TrainWindows
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings
from mu_sota.settings.run import RunSettings

RUN = load_settings("quickstart").run
LIKE = MuConfig(vocab_size=300, num_hidden_layers=2, max_position_embeddings=128)
MU = Contender("mu", "mu", "MU", LIKE, Parameters(1000, 300, 400), 7000, seconds_per_step=0.2)
GPT2 = Contender(
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
TABLES = dataclasses.replace(
    GPT2,
    name="llama-tables-flops",
    family="llama-tables",
    config=FAMILIES["llama-tables"].config(
        Shape(1, 32, 64), MuConfig(vocab_size=300, pair_table_rows=40, induction_tables=2)
    ),
)
AGAIN = dataclasses.replace(GPT2, name="control-again", matched_on=None, control_of="gpt2-flops", new_seeds=True)


def corpus() -> Corpus:
    splits = [Split(np.zeros(tokens + 1, np.uint16), 1, 1, 1) for tokens in (1_000_000, 100_000, 120_000)]
    return Corpus("made-up", "f", train_bpe(["some words of text"], 260), *splits)


CORPUS = corpus()
OLD = json.loads((Path(__file__).parent.parent / "fixtures/comparison_plan.json").read_text(encoding="utf-8"))


def inputs(run: RunSettings = RUN, **asked: Any) -> Inputs:
    windows = TrainWindows(CORPUS.train.tokens, run.window, run.stride)
    return Inputs(Request(**asked), run, LIKE, {}, CORPUS, windows)


def plan(run: RunSettings = RUN, **asked: Any) -> Plan:
    return fit_to_budget([MU, GPT2, AGAIN], inputs(run, **asked), 8, "fp32")


@given(minutes=st.integers(1, 5000), seeds=st.integers(2, 5), trials=st.integers(2, 24))
def test_a_plan_uses_its_budget(minutes: int, seeds: int, trials: int) -> None:
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
    assert found.contender_seconds(MU) == pytest.approx(2 * once + tuning)
    assert found.contender_seconds(GPT2) == pytest.approx(2 * found.contender_seconds(MU))
    assert found.contender_seconds(AGAIN) == pytest.approx(2 * 2 * once), "a control is not tuned"
    assert found.seconds == sum(found.contender_seconds(one) for one in found.contenders)


def test_overlapping_windows_of_evaluation_take_their_time() -> None:
    run = load_settings("quickstart", None, {"eval_stride": 32}).run
    slow = plan(run, budget="100steps", seeds=2, trials=2)
    fast = plan(budget="100steps", seeds=2, trials=2)
    assert slow.evaluation_seconds(MU, 1000) == pytest.approx(4 * fast.evaluation_seconds(MU, 1000))


def test_a_control_has_seeds_of_its_own() -> None:
    found = plan(budget="100steps", seeds=3)
    assert [list(found.seeds_of(one)) for one in found.contenders] == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]


def test_a_budget_that_is_too_short_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"--budget is '5s', but 10 steps of each of 51 trainings, .* about .*; give more"
    ):
        plan(budget="5s")
    with pytest.raises(InputError, match=r"--budget is '9steps'; give at least 10"):
        plan(budget="9steps")


def test_a_plan_survives_its_file() -> None:
    found = fit_to_budget([MU, GPT2, TABLES, AGAIN], inputs(budget="100steps"), 8, "fp32")
    again = Plan.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again.as_dict() == found.as_dict()
    assert [type(one.config) for one in again.contenders] == [type(one.config) for one in found.contenders]
    assert again.seconds == found.seconds
    assert tables_of(again.contenders[2].config) == {"pair_table_rows": 40, "induction_tables": 2}


def test_the_page_of_a_plan_names_every_model_with_its_size() -> None:
    page = describe(plan(budget="100steps"), inputs(), torch.device("cpu"))
    for expected in ("GPT-2, same FLOPs", "900", "500", "0.01 M", "100.14%", "0.400", "51 trainings, about"):
        assert expected in page


def test_a_plan_written_by_an_older_version_is_read_as_it_was() -> None:
    """`comparison_plan.json` holds a plan, and the id that the files of its trainings carry, by mu-sota at 11dbdc8."""
    found = Plan.from_dict(OLD["plan"])
    mu, gpt2, llama, again = found.contenders
    assert (mu.parameters, llama.matched_on, again.control_of) == ((97_292, 52_768, 4_800), "trunk", "gpt2-params")
    written = found.as_dict()
    assert list(written) == list(OLD["plan"])
    for new, before in zip(written["arms"], OLD["plan"]["arms"], strict=True):
        assert list(new) == list(before)
        assert {**new, "config": None} == {**before, "config": None}
    assert {**written, "arms": None} == {**OLD["plan"], "arms": None}
    assert gpt2.config.model_type == "gpt2"


def test_files_of_trainings_written_by_an_older_version_belong_to_their_plan(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path, {}, resume=False)
    folder.begin({"plan": OLD["plan"]})
    (tmp_path / "training.json").write_text(json.dumps({"plan": OLD["plan_id"], "loss": 1.0}), encoding="utf-8")
    assert folder.read(tmp_path / "training.json") == {"loss": 1.0}
