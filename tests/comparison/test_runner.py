"""A comparison as its user meets it: from the command to record and report, interrupted, resumed, refused."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from scipy import stats
from transformers import AutoModelForCausalLM, logging

from mu_sota import cli
from mu_sota.comparison import runner
from mu_sota.comparison.baselines import Gpt2Style, load
from mu_sota.comparison.folder import ComparisonFolder
from mu_sota.comparison.hyperparameter_search import Trial, first_trials
from mu_sota.comparison.inputs import load_inputs
from mu_sota.comparison.plan import plan_comparison
from mu_sota.comparison.request import Request
from mu_sota.comparison.runner import Comparison, run_comparison
from mu_sota.comparison.single_training import train_once
from mu_sota.data.corpus import load_corpus
from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.data.windows import EvalWindows
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings
from mu_sota.training.interrupt import Interrupt, Interrupted

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
    "window": 16,
    "stride": 16,
    "batch_size": 8,
    "sample_tokens": 5,
    "prompts": ["the state", "a block"],
    # A MU with tables has one more family beside it: see the test of that.
    "pair_table_rows": 0,
    "induction_tables": 0,
}
ASKED = ["--preset", "quickstart", "--seeds", "3", "--trials", "2", "--budget", "10steps", "--controls"]
SETTINGS = [f"--set={key}={value}" for key, value in TINY.items()]


def quick(patch: pytest.MonkeyPatch) -> None:
    """Make sizing, timing and evaluation short."""
    patch.setattr("mu_sota.comparison.timing._PROBE_SECONDS", 0.1)
    patch.setattr("mu_sota.comparison.size_matching._SEARCHES", 2)
    patch.setattr("mu_sota.comparison.plan._SMALLEST_CURVE", 256)
    for module in ("plan", "runner"):
        patch.setattr(f"mu_sota.comparison.{module}.CURVE_POINTS", 5)


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quick(monkeypatch)
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)  # the command line silences the library for its whole process
    logging.enable_progress_bar()


def mu_sota(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[[Path], Path]) -> Iterator[Any]:
    """One comparison of all questions: its corpus, its folder, and what it printed."""
    base = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_SOTA_CACHE", str(base / "cache"))
        quick(patch)
        corpus = make_corpus(base)
        assert mu_sota("compare", "--data", corpus, "--out", base / "out", *ASKED, *SETTINGS) == 0
        yield corpus, base / "out"


@pytest.fixture
def record(finished: tuple[Path, Path]) -> dict[str, Any]:
    return json.loads((finished[1] / "comparison.json").read_text(encoding="utf-8"))


def weights(out: Path, contender: str, seed: int) -> Path:
    return out / "trainings" / contender / f"seed-{seed}" / "best"


def count(folder: Path, without: tuple[str, ...] = ()) -> int:
    """Parameters in a safetensors file, but those whose names hold one of the words."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not any(word in name for word in without)]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


REFERENCES = ["unigram", "kneser-ney", "kneser-ney-seen"]


def test_all_questions_have_both_families_and_the_references(record: dict[str, Any]) -> None:
    rows = {
        table["question"]: [row.get("arm") or row["reference"] for row in table["rows"]] for table in record["tables"]
    }
    assert rows == {
        "params": ["mu", "gpt2-params", "gpt2-trunk", "llama-params", "llama-trunk", *REFERENCES],
        "flops": ["mu", "gpt2-flops", "llama-flops", *REFERENCES],
        "time": ["mu", "gpt2-time", "llama-time", *REFERENCES],
    }
    assert [one["arm"] for one in record["controls"]] == ["control-again", "control-slow"]


EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "affinity", "sources")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_saved_models_match_mu_in_parameters_and_flops(finished: Any, record: Any, family: str) -> None:
    out = finished[1]
    mu = weights(out, "mu", 0)
    total, non_embedding = (
        count(weights(out, f"{family}-params", 0)),
        count(weights(out, f"{family}-trunk", 1), EMBEDDINGS),
    )
    assert total == pytest.approx(count(mu), rel=0.005)
    assert non_embedding == pytest.approx(count(mu, EMBEDDINGS), rel=0.005)
    contenders = {one["name"]: one for one in record["arms"]}
    assert contenders["mu"]["parameters"]["total"] == count(mu)
    assert contenders["mu"]["parameters"]["outside"] == count(mu, EMBEDDINGS)
    assert contenders[f"{family}-params"]["match_ratio"] == total / count(mu)
    ours, theirs = contenders["mu"]["flops_per_token"], contenders[f"{family}-flops"]["flops_per_token"]
    assert theirs == pytest.approx(ours, rel=0.005)
    assert contenders[f"{family}-flops"]["training_flops"] == 10 * 8 * 16 * theirs


@pytest.mark.parametrize("one", ["mu", "gpt2-trunk", "llama-flops", "control-slow"])
def test_the_test_loss_is_that_of_the_saved_weights_in_the_library(finished: Any, record: Any, one: str) -> None:
    """From full logits of the model as `transformers` loads it."""
    corpus_folder, out = finished
    folder = weights(out, one, 1)
    corpus = load_corpus(str(corpus_folder), tokenizer=load_tokenizer(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    windows, nll = EvalWindows(corpus.test.tokens, 16, 16), 0.0
    with torch.no_grad():
        for index in range(len(windows)):
            window = windows[index]
            logits = model(window["input_ids"][None]).logits[0]
            nll += F.cross_entropy(logits, window["shift_labels"], reduction="sum").item()
    (entry,) = [entry for entry in record["arms"] if entry["name"] == one]
    (run,) = [run for run in entry["runs"] if run["seed"] == 1]
    assert run["test"]["num_tokens"] == corpus.test.n_predicted
    assert run["test"]["nll"] == pytest.approx(nll, rel=1e-4)


def test_the_statistics_are_those_of_scipy(record: dict[str, Any]) -> None:
    losses = {one["name"]: [run["test"]["loss"] for run in one["runs"]] for one in record["arms"]}
    for table in record["tables"]:
        for row in table["rows"]:
            if "arm" in row and row["difference"]:
                expected = stats.ttest_rel(losses["mu"], losses[row["arm"]])
                assert row["difference"]["p"] == pytest.approx(expected.pvalue)
                assert row["metrics"]["loss"]["mean"] == pytest.approx(np.mean(losses[row["arm"]]))
    slow = record["controls"][1]["difference"]
    assert slow["values"] == pytest.approx(np.subtract(losses["control-slow"], losses["gpt2-params"]))


def test_every_model_is_tuned_alike_and_keeps_what_was_best(record: dict[str, Any]) -> None:
    tried = None
    for one in record["arms"]:
        if one["control_of"]:
            assert one["tuning"] == []
            continue
        (rung,) = one["tuning"]
        settings = [{key: trial[key] for key in record["grid"]} for trial in rung["trials"]]
        tried = tried or settings
        assert settings == tried
        assert rung["steps"] == 10
        best = min(rung["trials"], key=lambda trial: trial["loss"])
        assert one["chosen"] == {key: best[key] for key in record["grid"]}
        for run in one["runs"]:
            assert {key: run[key] for key in record["grid"]} == one["chosen"]
    contenders = {one["name"]: one for one in record["arms"]}
    base, slow = contenders["gpt2-params"]["chosen"], contenders["control-slow"]["chosen"]
    assert slow == base | {"learning_rate": pytest.approx(base["learning_rate"] / 10)}
    assert [run["seed"] for run in contenders["control-again"]["runs"]] == [3, 4, 5]
    assert [run["seed"] for run in contenders["control-slow"]["runs"]] == [0, 1, 2]


def test_curves_are_recorded_against_steps_tokens_flops_and_seconds(record: dict[str, Any]) -> None:
    for one in record["arms"]:
        for run in one["runs"]:
            assert [row["step"] for row in run["curve"]] == list(range(2, 11, 2))
            assert [row["tokens"] for row in run["curve"]] == [step * 8 * 16 for step in range(2, 11, 2)]
            assert run["curve"][-1]["flops"] == one["training_flops"]
            seconds = [row["seconds"] for row in run["curve"]]
            assert seconds == sorted(seconds)
            assert seconds[-1] <= run["seconds"]


def test_every_model_has_passed_the_leak_check(record: dict[str, Any]) -> None:
    for one in record["arms"]:
        assert one["leak_check"]["clean"]
        assert {check["verdict"] for check in one["leak_check"]["checks"]} == {"ok"}, "none skipped"


def test_the_test_split_is_read_when_every_training_is_over(finished: Any) -> None:
    trainings = (finished[1] / "trainings").rglob("training.json")
    scores = (finished[1] / "trainings").rglob("scores.json")
    assert max(path.stat().st_mtime_ns for path in trainings) < min(path.stat().st_mtime_ns for path in scores)


def test_samples_continue_the_prompts(record: dict[str, Any]) -> None:
    for one in record["arms"]:
        for prompt, text in zip(TINY["prompts"], one["samples"], strict=True):
            assert text.startswith(prompt)
            assert len(text) > len(prompt)


def test_the_folder_holds_record_and_report(finished: Any, record: dict[str, Any]) -> None:
    page = (finished[1] / "report.html").read_text(encoding="utf-8")
    short = (finished[1] / "report.md").read_text(encoding="utf-8")
    for text in (page, short):
        assert "same total parameters" in text
        assert record["command"].partition(" --data")[0] in text
    assert not {path.name for path in finished[1].iterdir()} - {
        *(
            ".lock",
            "tensorboard",
            "comparison.json",
            "plan.json",
            "references.json",
            "report.html",
            "report.md",
            "figures",
            "trainings",
        )
    }


def test_a_trained_model_of_a_comparison_generates_text(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished[1] / "trainings/mu/seed-0"
    assert mu_sota("generate", folder, "--prompt", "the state", "--max-new-tokens", "3") == 0
    assert capsys.readouterr().out.startswith("the state")


def small(corpus: Path, **asked: Any) -> Request:
    """The request of a small comparison: one question, two seeds, two trials."""
    options: dict[str, Any] = {"questions": ("flops",), "seeds": 2, "trials": 2, "budget": "10steps"}
    return Request(preset="quickstart", data=str(corpus), overrides=TINY, **options | asked)


SETTINGS_OF_TINY = load_settings("quickstart", overrides=TINY)
ALL_ASKED: dict[str, Any] = {
    "questions": ("params", "flops", "time"),
    "seeds": 3,
    "trials": 2,
    "budget": "10steps",
    "controls": True,
}


def run(request: Request, out: Path, resume: bool = False) -> dict[str, Any]:
    return run_comparison(request, SETTINGS_OF_TINY, out, resume)


def prepared(corpus: Path, out: Path, **asked: Any) -> Comparison:
    """A small comparison that is planned, and of which nothing is done."""
    inputs, device = load_inputs(small(corpus, **asked), SETTINGS_OF_TINY), torch.device("cpu")
    folder = ComparisonFolder(out, inputs.identity(), resume=False)
    plan = plan_comparison(inputs, device)
    folder.begin({"plan": plan.as_dict()})
    return Comparison(inputs, plan, folder, device, Interrupt())


def test_a_mu_with_tables_meets_a_llama_with_the_same(tiny_corpus: Path, tmp_path: Path) -> None:
    overrides = TINY | {"pair_table_rows": 50, "induction_tables": 2}
    request, settings = replace(small(tiny_corpus), overrides=overrides), load_settings("quickstart", None, overrides)
    record = run_comparison(request, settings, tmp_path, resume=False)
    rows = [row.get("arm") or row["reference"] for row in record["tables"][0]["rows"]]
    assert rows == ["mu", "gpt2-flops", "llama-flops", "llama-tables-flops", *REFERENCES]
    mu, _, llama, with_tables = record["arms"]
    assert {check["verdict"] for check in with_tables["leak_check"]["checks"]} == {"ok"}, "none skipped"
    assert with_tables["flops_per_token"] == llama["flops_per_token"] == pytest.approx(mu["flops_per_token"], rel=0.005)
    trained: Any = load(weights(tmp_path, "llama-tables-flops", 1))
    for table in trained.model.lookups.tables:
        assert table.weight.abs().sum() > 0, "it learns"
    assert "Llama with MU's tables, same FLOPs" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_settings_of_an_earlier_comparison_are_taken_and_nothing_is_tuned(
    finished: Any, record: Any, tmp_path: Path
) -> None:
    corpus, earlier = finished
    asked = ["--preset", "quickstart", "--match", "flops", "--seeds", "1", "--budget", "12steps"]
    taken = ["--tuned-in", earlier, "--out", tmp_path / "longer"]
    assert mu_sota("compare", "--data", corpus, *asked, *taken, *SETTINGS) == 0
    longer = json.loads((tmp_path / "longer/comparison.json").read_text(encoding="utf-8"))
    chosen = {one["name"]: one["chosen"] for one in record["arms"]}
    for one in longer["arms"]:
        assert one["chosen"] == chosen[one["name"]]
        assert one["tuning"] == []
        assert {run["learning_rate"] for run in one["runs"]} == {chosen[one["name"]]["learning_rate"]}
    assert not list((tmp_path / "longer").rglob("tuning-*"))
    assert longer["trials"] is None
    assert longer["earlier_tuning"]["command"] == record["command"]
    assert longer["earlier_tuning"]["steps"] == 10
    assert (
        "Nothing was tuned: the settings are those that an earlier comparison chose for 10 steps." in longer["verdict"]
    )
    assert f"--tuned-in {earlier}" in longer["command"]
    shutil.move(earlier / "comparison.json", tmp_path / "moved.json")
    try:  # the plan has them
        assert mu_sota("compare", "--out", tmp_path / "longer", "--resume") == 0
    finally:
        shutil.move(tmp_path / "moved.json", earlier / "comparison.json")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--trials", "4"], "--trials tries settings and --tuned-in takes those of a finished comparison; give one"),
        (["--match", "flops,time", "--set=pair_table_rows=40"], "not for llama-tables-flops, llama-tables-time; give"),
    ],
)
def test_earlier_settings_that_do_not_fit_are_refused_at_once(
    finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], message: str
) -> None:
    corpus, earlier = finished
    taken = ["--tuned-in", earlier, "--out", tmp_path / "new"]
    assert mu_sota("compare", "--preset", "quickstart", "--data", corpus, *taken, *SETTINGS, *asked) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Sizing" not in said
    assert not (tmp_path / "new").exists()


def test_finished_work_is_not_done_again(finished: Any, record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is left to do")

    for name in ("train_once", "evaluate", "count_references", "assert_causal", "plan_comparison"):
        monkeypatch.setattr(runner, name, never)
    assert mu_sota("compare", "--out", finished[1], "--resume") == 0, "asked for as it was"
    again = json.loads((finished[1] / "comparison.json").read_text(encoding="utf-8"))
    assert {**again, "finished": None} == {**record, "finished": None}


def test_an_interrupted_comparison_ends_as_if_it_had_not_been(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.report, "write", lambda record, out: None)
    whole = run(small(tiny_corpus), tmp_path / "whole")
    # The same plan: sizes for equal time hang on the clock.
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole/plan.json", tmp_path / "parts")
    ticks = 0
    stops = [7, 33, 62]

    def interrupted(setup: Any, *arguments: Any) -> Any:
        def tick(step: int, loss: float) -> None:
            nonlocal ticks
            ticks += 1
            setup.interrupt.received = ticks in stops
            setup.tick(step, loss)

        return train_once(replace(setup, tick=tick), *arguments)

    monkeypatch.setattr(runner, "train_once", interrupted)
    for _ in stops:
        with pytest.raises(Interrupted, match="is saved at step"):
            run(small(tiny_corpus), tmp_path / "parts", resume=True)
    parts = run(small(tiny_corpus), tmp_path / "parts", resume=True)
    assert ticks == 6 * 10 + 6 * 10, "6 trials and 6 trainings of 10 steps, none done twice"
    clocks = ("started", "finished", "seconds", "command")

    def without_clocks(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_clocks(item) for key, item in value.items() if key not in clocks}
        return [without_clocks(item) for item in value] if isinstance(value, list) else value

    assert without_clocks(parts) == without_clocks(whole)


def test_rungs_of_one_length_are_different_training_runs(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a short comparison a rung can be no longer than the one before; its settings are others all the same."""
    losses = dict(zip(first_trials(5), [5.0, 4.0, 3.0, 2.0, 1.0], strict=True))
    trained = []

    def never_mind(setup: Any, config: Any, trial: Trial, seed: int, steps: int, *_: Any) -> dict[str, Any]:
        trained.append((trial, steps))
        return {"loss": losses[trial], "seconds": 0.0, "diverged": None if losses[trial] > 1 else 3}

    monkeypatch.setattr(runner, "train_once", never_mind)
    work = prepared(tiny_corpus, tmp_path / "out", trials=5)
    mu = work.plan.contenders[0]
    assert [rung.steps for rung in work.plan.rungs] == [4, 4, 10]
    assert work.tune(mu) == first_trials(5)[3], "the least loss is that of a training that diverged"
    assert [steps for _, steps in trained] == [4] * 5 + [4] * 3 + [10] * 2
    assert [trial for trial, _ in trained[5:8]] == first_trials(5)[3:0:-1]
    assert [[trial["loss"] for trial in rung["trials"]] for rung in work.tuning_record(mu)][1:] == [[2, 3, 4], [2, 3]]


def test_a_rung_may_have_fewer_trials_than_planned(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that diverged are in the record, and tried no further."""
    only = first_trials(4)[2]
    monkeypatch.setattr(
        runner,
        "train_once",
        lambda setup, config, trial, *_: {"loss": 1.0, "seconds": 0.0, "diverged": None if trial == only else 3},
    )
    work = prepared(tiny_corpus, tmp_path / "out", trials=4)
    mu = work.plan.contenders[0]
    assert work.tune(mu) == only
    assert [len(rung["trials"]) for rung in work.tuning_record(mu)] == [4, 1]
    monkeypatch.setattr(runner, "train_once", lambda *_: {"loss": 1.0, "seconds": 0.0, "diverged": 3})
    with pytest.raises(InputError, match=r"GPT-2, same FLOPs: all its trials in a round of tuning diverged"):
        work.tune(work.plan.contenders[1])


def test_out_of_memory_names_the_setting_to_lower(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(runner, "train_once", too_much)
    with pytest.raises(
        InputError, match=r"out of memory while MU was trained; go on with --resume --set micro_batch_size=4"
    ):
        run(small(tiny_corpus), tmp_path / "out")


def test_the_plan_of_a_begun_comparison_is_shown_unchanged(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert mu_sota("compare", "--out", finished[1], "--resume", "--plan") == 0
    plan = json.loads((finished[1] / "plan.json").read_text(encoding="utf-8"))["plan"]
    page = capsys.readouterr().out
    for one in plan["arms"]:
        assert f"{one['seconds_per_step']:.3f}" in page


def test_n_grams_on_as_many_tokens_are_fewer(record: Any) -> None:
    entries = {one["name"]: one["entries"] for one in record["references"]}
    assert 0 < entries["kneser-ney-seen"] < 1.5 * entries["kneser-ney"]


def test_a_model_that_leaks_is_not_compared(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = Gpt2Style.forward

    def leaking(self: Any, input_ids: Any = None, **rest: Any) -> Any:
        output = honest(self, input_ids, **rest)
        if output.logits is not None and input_ids is not None:
            output.logits[:, :-1] += F.one_hot(input_ids[:, 1:], output.logits.shape[-1])
        return output

    monkeypatch.setattr(Gpt2Style, "forward", leaking)
    out = tmp_path / "out"
    assert mu_sota("compare", "--data", tiny_corpus, "--out", out, *ASKED, *SETTINGS, "--match", "flops") == 2
    assert "the model is not causal" in capsys.readouterr().err
    assert not out.exists(), "nothing half-written"


def test_a_plan_trains_nothing_and_leaves_nothing(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert mu_sota("compare", "--plan", "--data", tiny_corpus, "--match", "flops", *ASKED, *SETTINGS) == 0
    page, progress = capsys.readouterr()
    for expected in ("MU: ", "GPT-2, same FLOPs: ", "Llama, same FLOPs: "):
        assert f"  {expected}" in progress, "reported while it is timed"
    for expected in ("GPT-2, same FLOPs", "Llama, same FLOPs", "FLOPs/token", "trainings, about"):
        assert expected in page
    assert "same total parameters" not in page
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert mu_sota("compare", *arguments) == 2
    errors = capsys.readouterr().err
    (message,) = [line for line in errors.splitlines() if line.startswith("mu-sota: ")]
    assert "Traceback" not in errors
    return message


def test_a_refusal_is_one_sentence(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = finished
    assert "give --out" in refusal(capsys, "--data", corpus)
    assert "no comparison" in refusal(capsys, "--out", tmp_path / "typo", "--resume")
    assert "--match has 'speed'" in refusal(capsys, "--data", corpus, "--out", tmp_path, "--match", "speed")
    assert "--trials is 25" in refusal(capsys, "--data", corpus, "--out", tmp_path, "--trials", "25", *SETTINGS)
    assert "it is tuned" in refusal(capsys, "--data", corpus, "--out", tmp_path, "--set", "dropout=0.3")
    assert "already holds a comparison" in refusal(capsys, "--data", corpus, "--out", out, *ASKED, *SETTINGS)
    assert "was started with seeds 3, not 4" in refusal(capsys, "--out", out, "--resume", "--seeds", "4")
    assert "was started with match" in refusal(capsys, "--out", out, "--resume", "--match", "time")
    assert "was started with stride 16, not 8" in refusal(capsys, "--out", out, "--resume", "--set", "stride=8")
    (corpus / "train.txt").write_text((corpus / "train.txt").read_text() + "One more sentence.\n")
    assert "other text or tokens" in refusal(capsys, "--out", out, "--resume")
