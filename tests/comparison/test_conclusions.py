"""From test losses to conclusions: better or worse only if the seeds show it."""

import re
from typing import Any

import pytest

from mu_sota.comparison.conclusions import as_text, conclude
from mu_sota.evaluation.metrics import Score


def runs(*losses: float) -> list[dict[str, Any]]:
    return [
        {
            "seed": seed,
            "diverged": None,
            "steps": 200,
            "seconds": 10.0,
            "test": Score(loss * 100, 20, 100, 50, 300).as_dict(),
        }
        for seed, loss in enumerate(losses)
    ]


def contender(name: str, matched_on: str | None, *losses: float, **more: Any) -> dict[str, Any]:
    label = {"mu": "MU", "gpt2": "GPT-2", "llama": "Llama"}.get(name.split("-")[0], name)
    return {
        "name": name,
        "label": label,
        "matched_on": matched_on,
        "control_of": None,
        "new_seeds": False,
        "at_edge": [],
    } | {
        "title": label,
        "match_ratio": 1.0,
        "runs": runs(*losses),
        **more,
    }


MU = contender("mu", None, 4.00, 4.01, 3.99)
BETTER = contender("gpt2-params", "params", 4.50, 4.52, 4.51)
WORSE = contender("gpt2-trunk", "trunk", 3.50, 3.52, 3.49)
EQUAL = contender("llama-flops", "flops", 4.02, 3.98, 4.01)
REFERENCES = [{"name": "unigram", "label": "unigram model"} | runs(6.0)[0]]


def found(*baselines: dict[str, Any], questions: Any = ("params", "flops")) -> dict[str, Any]:
    return conclude([MU, *baselines], REFERENCES, questions, kernels=False, epochs=1)


def test_every_question_has_its_baselines_and_all_have_the_references() -> None:
    tables = found(BETTER, WORSE, EQUAL)["tables"]
    names = [[row.get("arm") or row["reference"] for row in table["rows"]] for table in tables]
    assert names == [["mu", "gpt2-params", "gpt2-trunk", "unigram"], ["mu", "llama-flops", "unigram"]]
    outcomes = [[row["difference"] and row["difference"]["verdict"] for row in table["rows"]] for table in tables]
    assert outcomes == [[None, "MU better", "MU worse", "MU better"], [None, "no difference shown", "MU better"]]


def test_means_and_differences_are_of_the_test_losses() -> None:
    (table, _) = found(BETTER, EQUAL)["tables"]
    mu, gpt2, unigram = table["rows"]
    assert mu["metrics"]["loss"]["mean"] == pytest.approx(4.0)
    assert mu["metrics"]["word_perplexity"]["values"] == pytest.approx(
        [2.718281828 ** (2 * x) for x in (4, 4.01, 3.99)]
    )
    assert gpt2["difference"]["values"] == pytest.approx([-0.50, -0.51, -0.52])
    assert unigram["difference"]["mean"] == pytest.approx(-2.0)
    assert unigram["metrics"]["loss"] == {"values": [6.0], "mean": 6.0, "low": None, "high": None}, "counted once"


def test_the_sentences_name_better_worse_and_no_difference() -> None:
    sentences = found(BETTER, WORSE, EQUAL)["verdict"]
    assert sentences == [
        "The same number of parameters: MU is better than GPT-2 (same total parameters) by 0.510 nats a token; MU is "
        "worse than GPT-2 (same non-embedding parameters) by 0.497 nats a token.",
        "The same number of operations: no difference is shown to Llama (same FLOPs).",
        "Beside models that only count: MU is better than the unigram model by 2.000 nats a token.",
    ]


def test_the_tables_for_a_terminal() -> None:
    contenders = [MU, BETTER]
    lines = as_text({"arms": contenders, "references": REFERENCES} | found(BETTER, questions=["params"])).splitlines()
    assert re.split(r"\s{2,}", lines[0]) == [
        "The same number of parameters",
        "PPL/word",
        "bits/byte",
        "loss",
        "MU minus it",
    ]
    assert lines[1].split() == ["MU", "2,981.4", "1.9236", "4.0000"]
    assert lines[2].split()[0] == "GPT-2"
    assert lines[2].endswith("-0.5100 (-0.5348 to -0.4852) MU better")


def test_remarks_name_time_off_grid_edges_and_divergence() -> None:
    quick = contender("gpt2-time", "time", 4.5, 4.5, 4.6)
    for run, seconds in zip(quick["runs"], (9.3, 9.2, 30.0), strict=True):  # other work met the last one
        run["seconds"] = seconds
    edge = contender("llama-flops", "flops", 4.5, 4.5, 4.6, at_edge=["learning_rate"])
    broken = contender("gpt2-params", "params", 4.5, 4.5, 9.0)
    broken["runs"][2]["diverged"] = 120
    sentences = found(quick, edge, broken, questions=["params", "flops", "time"])["verdict"][-3:]
    assert sentences == [
        "The same time was not quite met, since sizes are timed before anything is tuned: the trainings of these took "
        "so many times as long as MU's: GPT-2 (0.93).",
        "The best learning rate was the lowest or highest of the grid for Llama: one beyond it might serve better "
        "there.",
        "Trainings that diverged, so that their best weights before count: GPT-2, seed 2, at step 120.",
    ]


def test_a_training_below_one_epoch_is_remarked() -> None:
    sentences = conclude([MU, BETTER], [], ["params"], kernels=False, epochs=0.1234)["verdict"]
    assert sentences[1:] == ["The models read 0.12 of the text, once: what holds so early need not hold later."]


def test_kernels_are_named_where_time_is_the_question() -> None:
    (table,) = conclude([MU], [], ["time"], kernels=True, epochs=1)["tables"]
    assert "MU's layers ran on kernels of their own" in table["asks"]


def test_one_seed_shows_no_difference() -> None:
    single = [dict(one, runs=one["runs"][:1]) for one in (MU, BETTER)]
    sentences = conclude(single, [], ["params"], kernels=False, epochs=1)["verdict"]
    assert sentences == ["The same number of parameters: no difference is shown to GPT-2 (same total parameters)."]


def control(name: str, new_seeds: bool, *losses: float) -> dict[str, Any]:
    return contender(name, None, *losses, control_of="gpt2-params", new_seeds=new_seeds)


def test_controls_with_the_expected_outcome_pass() -> None:
    again, slow = control("control-again", True, 4.53, 4.50, 4.49), control("control-slow", False, 5.0, 5.02, 5.01)
    result = found(BETTER, again, slow)
    assert [(one["expected"], one["passed"]) for one in result["controls"]] == [
        ("no difference shown", True),
        ("worse", True),
    ]
    assert result["verdict"][0].startswith("The same number of parameters")
    assert all(row.get("arm") not in ("control-again", "control-slow") for t in result["tables"] for row in t["rows"])


@pytest.mark.parametrize(
    "rigged",
    [control("control-again", True, 4.40, 4.42, 4.41), control("control-slow", False, 4.53, 4.50, 4.49)],
)
def test_a_failed_control_comes_first(rigged: dict[str, Any]) -> None:
    result = found(BETTER, rigged)
    assert not result["controls"][0]["passed"]
    assert result["verdict"][0] == (
        f"A control did not come out as it must ({rigged['name']}), so nothing below can be relied on."
    )
