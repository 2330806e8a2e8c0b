"""The command line as typed: what it answers, and one sentence, never a traceback, for what it cannot do."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from conftest import TINY, TINY_SETTINGS

from mu_sota import cli
from mu_sota.settings.load import load_settings
from mu_sota.training import trainer


@pytest.fixture(autouse=True)
def _library_output_as_before() -> Any:
    """The command line silences the library for its whole process; tests share one."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


def mu_sota(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, output and error output of a command, run in this process."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one sentence with which a command is refused."""
    status, _, errors = mu_sota(capsys, *arguments)
    said = [line for line in errors.splitlines() if line.startswith("mu-sota: ")]
    assert status == 2, errors
    assert len(said) == 1, errors
    assert "Traceback" not in errors
    return said[0]


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; sys.argv[0] = 'mu-sota'; import mu_sota.cli as c\n"
        "try: c.main(['train', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--resume" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_is_enough_for_the_auto_classes(trained: Any) -> None:
    code = (
        "import mu_sota, sys\nfrom transformers import AutoModelForCausalLM, AutoConfig\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    folder = trained[1] / "best"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "MuForCausalLM"


def test_version_and_module_form() -> None:
    done = subprocess.run([sys.executable, "-m", "mu_sota", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def test_info_counts_the_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = mu_sota(capsys, "info", "--preset", "mu-sota")
    assert status == 0
    assert re.search(r"total +26,946,256", out)
    assert re.search(r"affinity +19,200,000 +71\.3%", out)
    assert "learning_rate        0.0001" in out


def test_evaluate_prints_and_as_json(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, folder = trained
    status, out, _ = mu_sota(capsys, "evaluate", folder, "--data", corpus, "--split", "validation", "--json")
    assert status == 0
    score = json.loads(out)
    recorded = json.loads((folder / "run.json").read_text())["result"]["best"]["validation"]
    assert score["perplexity"] == pytest.approx(recorded["perplexity"], rel=1e-6)
    assert score["split"] == "validation"
    _, text, _ = mu_sota(capsys, "evaluate", folder / "best", "--data", corpus, "--split", "validation")
    assert f"perplexity       {recorded['perplexity']:.4f}" in text
    _, out, _ = mu_sota(
        capsys, "evaluate", folder, "--data", corpus, "--split", "validation", "--stride", "8", "--json"
    )
    assert json.loads(out)["num_tokens"] == score["num_tokens"]


def test_evaluate_takes_all_of_another_file(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a split of it where one is asked for; the folder's own data is taken by split."""
    corpus, folder = trained
    text = (corpus / "valid.txt").read_text()
    (tmp_path / "mine.txt").write_text(text)
    ask = ("evaluate", folder, "--json", "--data")
    whole = json.loads(mu_sota(capsys, *ask, tmp_path / "mine.txt")[1])
    split = json.loads(mu_sota(capsys, *ask, corpus, "--split", "validation")[1])
    assert whole["split"] == "all"
    assert whole["num_bytes"] == len(text.encode())
    assert whole["nll"] == pytest.approx(split["nll"], rel=1e-6)
    part = json.loads(mu_sota(capsys, *ask, tmp_path / "mine.txt", "--split", "test")[1])
    assert part["num_bytes"] < 0.1 * len(text)
    assert "which is of one file" in refused(capsys, *ask, corpus, "--split", "all")
    (tmp_path / "empty.txt").write_text(" \n")
    assert "holds no text" in refused(capsys, *ask, tmp_path / "empty.txt")
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    assert "has no column `text`, only `a`, `b`" in refused(capsys, *ask, tmp_path / "mine.csv")


def test_generate_repeats_with_a_seed(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = trained
    ask = ("generate", folder, "--prompt", "the state", "--max-new-tokens", "20", "--seed")
    first, again, other = (mu_sota(capsys, *ask, seed)[1] for seed in ("1", "1", "2"))
    assert first.startswith("the state")
    assert first == again != other


def test_generate_passes_every_setting_on(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each narrow enough to give the likeliest text, or its opposite."""
    ask = ("generate", trained[1], "--prompt", "the state", "--max-new-tokens", "20", "--repetition-penalty")
    likeliest = mu_sota(capsys, *ask, "1", "--temperature", "0")[1]
    for narrow in (("--top-k", "1"), ("--top-p", "0.000001"), ("--temperature", "0.01")):
        assert mu_sota(capsys, *ask, "1", *narrow)[1] == likeliest
    assert mu_sota(capsys, *ask, "50", "--temperature", "0")[1] != likeliest


def test_generate_stops_at_the_last_position_and_says_so(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, text, errors = mu_sota(capsys, "generate", trained[1], "--prompt", "the", "--max-new-tokens", "500")
    assert status == 0
    assert text.startswith("the")
    assert re.search(r"mu-sota: \d+ new tokens are all that fit into the model's 32 positions", errors)
    said = refused(capsys, "generate", trained[1], "--prompt", "the state of " * 30)
    assert "the prompt 'the state of the state of the state o...' has" in said


def test_generate_takes_an_empty_prompt(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert mu_sota(capsys, "generate", trained[1], "--prompt", "", "--max-new-tokens", "3")[0] == 0


def test_export_says_how_to_load(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    status, printed, errors = mu_sota(capsys, "export", trained[1], "--out", out)
    assert (status, errors) == (0, "Loading PyTorch ...\n")
    assert f"AutoModelForCausalLM.from_pretrained('{out}', trust_remote_code=True)" in printed
    assert "is there already" in refused(capsys, "export", trained[1], "--out", out)
    # What was exported is a model like any other to the other commands.
    text = mu_sota(capsys, "generate", out, "--prompt", "the state", "--temperature", "0")[1]
    assert text == mu_sota(capsys, "generate", trained[1], "--prompt", "the state", "--temperature", "0")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--set", "learnig_rate=1"], "did you mean 'learning_rate'?"),
        (["train", "--set", "batch_size=many"], "the setting batch_size is 'many'"),
        (["train", "--preset", "large"], "no preset is named 'large'; choose one of: mu-sota, quickstart, "),
        (["train", "--data", "no/such/folder"], "no/such/folder"),
        (["train", "--config", "none.yaml"], "none.yaml does not exist"),
        (["train", "--max-steps", "0"], "the setting max_steps is 0"),
        (["train", "--preset", "quickstart", "--set", "sample_tokens=127"], "the prompt 'The quick brown' has"),
    ],
)
def test_unusable_arguments_of_train(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    assert says in refused(capsys, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is left half-written"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"train": "", "valid": "", "test": ""}, "empty|no text"),
        ({"train": "too short", "valid": "short", "test": "short"}, r"tokens"),
    ],
)
def test_a_corpus_that_is_empty_or_too_short(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: dict[str, str],
    says: str,
) -> None:
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus").mkdir()
    for name, text in texts.items():
        (tmp_path / "corpus" / f"{name}.txt").write_text(text)
    assert re.search(
        says, refused(capsys, "train", "--data", tmp_path / "corpus", "--out", tmp_path / "out", *TINY_SETTINGS)
    )
    assert not (tmp_path / "out").exists()


def test_wrong_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no folder" in refused(capsys, "generate", tmp_path / "none", "--prompt", "a")
    assert "holds no trained model" in refused(capsys, "evaluate", tmp_path)


def test_unusable_arguments_of_evaluate_and_generate(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, folder = trained
    assert "choose train, validation, test or all" in refused(capsys, "evaluate", folder, "--split", "dev")
    assert "stride <= window <= 32" in refused(capsys, "evaluate", folder, "--data", corpus, "--window", "64")
    assert "give either --prompt" in refused(capsys, "generate", folder)


def test_a_damaged_model_gets_a_sentence(trained: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (trained[1] / "best").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".safetensors" else None])
    assert "cannot be loaded" in refused(capsys, "generate", damaged, "--prompt", "a")


def test_weights_that_do_not_fit_are_refused_not_filled_in(
    trained: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The library would draw what is missing at random, and the perplexity would be of that."""
    corpus, folder = trained
    shutil.copytree(folder / "best", tmp_path / "best")
    weights = safetensors.torch.load_file(tmp_path / "best" / "model.safetensors")
    del weights["lm_head.weight"]
    safetensors.torch.save_file(weights, tmp_path / "best" / "model.safetensors", metadata={"format": "pt"})
    assert "do not fit its config.json: lm_head.weight" in refused(capsys, "evaluate", tmp_path, "--data", corpus)


def _stop(*_: Any, **__: Any) -> None:
    raise KeyError("stopped")


def test_a_model_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1).save_pretrained(tmp_path)
    assert "holds a model of type 'gpt2'" in refused(capsys, "generate", tmp_path, "--prompt", "a")


def test_evaluate_defaults_to_text_and_windows_of_the_run(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Positions beyond the run's window have never been trained."""
    asked = ("--set", "window=16", "--set", "stride=16", "--set", "eval_stride=8")
    mu_sota(capsys, "train", "--data", tiny_corpus, "--out", tmp_path / "out", *TINY_SETTINGS, *asked)
    for place in (tmp_path / "out", tmp_path / "out" / "best"):
        figures = json.loads(mu_sota(capsys, "evaluate", place, "--json")[1])
        assert (figures["data"], figures["window"], figures["stride"]) == (str(tiny_corpus), 16, 8)


def test_resume_needs_nothing_but_the_folder(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preset, data and settings are those of the run; what is given must agree, however the path is written."""
    asked = ("train", "--preset", "quickstart", "--data", f"{tiny_corpus}/", "--out", tmp_path / "out", *TINY_SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.MuTrainer, "evaluate", _stop)
        with pytest.raises(KeyError, match="stopped"):
            cli.main([str(argument) for argument in asked])
    status, out, errors = mu_sota(capsys, "train", "--out", tmp_path / "out", "--resume")
    assert status == 0, errors
    assert "preset quickstart" in out
    assert mu_sota(capsys, "train", "--data", tiny_corpus, "--out", tmp_path / "out", "--resume")[0] == 0
    other = refused(capsys, "train", "--data", tiny_corpus / "train.txt", "--out", tmp_path / "out", "--resume")
    assert "now gives other text or tokens" in other


def test_a_prepared_folder_takes_the_place_of_its_text(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For evaluation, and in both directions for a run that is resumed."""
    text, folder = trained
    prepared = tmp_path / "prepared"
    status, out, _ = mu_sota(capsys, "prepare", "--data", text, "--out", prepared, "--set", "vocab_size=300")
    assert status == 0
    assert f"{prepared} is ready: a bpe vocabulary of 300, fingerprint" in out
    assert re.search(rf"^  train +1 +{(text / 'train.txt').stat().st_size:,} +[\d,]+$", out, re.MULTILINE)
    ask = ("evaluate", folder, "--json", "--data")
    scores = [json.loads(mu_sota(capsys, *ask, data)[1]) for data in (text, prepared)]
    assert scores[0] | {"data": str(prepared)} == scores[1]

    for begun, resumed in ((text, prepared), (prepared, text)):
        run = tmp_path / f"on-{begun.name}"
        with monkeypatch.context() as patch:
            patch.setattr(trainer.MuTrainer, "evaluate", _stop)
            with pytest.raises(KeyError, match="stopped"):
                cli.main(["train", "--data", str(begun), "--out", str(run), *TINY_SETTINGS])
        assert mu_sota(capsys, "train", "--data", resumed, "--out", run, "--resume")[0] == 0
        record = json.loads((run / "run.json").read_text())
        assert (record["data"], len(record["starts"])) == (str(begun), 2)
    said = refused(capsys, "train", "--preset", "quickstart", "--data", prepared, "--out", tmp_path / "new")
    assert "was prepared with vocab_size=300, and vocab_size=4096 is asked for: set vocab_size=300" in said


def test_text_that_the_terminal_lacks_letters_for_is_printed_all_the_same(trained: Any) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mu_sota",
            "generate",
            trained[1],
            "--max-new-tokens",
            "3",
            "--prompt",
            "\u2192 na\u00efve",
        ],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\\u2192 na\\xefve")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, os.strerror(28), "out/mu_sota_best.pt"), "the disk is full, writing out/mu_sota_best.pt"),
        # What torch.save raises in fact, seen on a small file system.
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 530496 vs 530384"), "full disk"),
    ],
)
def test_a_full_disk_gets_a_sentence_and_the_run_goes_on_afterwards(
    capsys: pytest.CaptureFixture[str],
    tiny_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    says: str,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    asked: tuple[str | Path, ...] = ("train", "--data", tiny_corpus, "--out", tmp_path / "out", *TINY_SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.torch, "save", full)
        assert says in refused(capsys, *asked)
    assert not list((tmp_path / "out").glob("*.pt"))
    status, out, _ = mu_sota(capsys, *asked, "--resume")
    assert status == 0
    assert "[ok] best model saved, and loads again" in out


def test_run_colab_is_the_full_recipe(tmp_path: Path, tiny_corpus: Path) -> None:
    """Offline it can go no further than the data; with data of one's own it trains."""
    script = Path(__file__).parents[2] / "run_colab.py"
    done = subprocess.run(
        [sys.executable, script, "--data", tiny_corpus, "--max-steps", "1", *TINY_SETTINGS],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "mu_sota_run" / "run.json").read_text())
    assert record["preset"] == "mu-sota"
    recipe = load_settings("mu-sota").run.model_dump(exclude={*TINY, "max_steps"})
    assert {key: record["settings"][key] for key in recipe} == recipe
    assert (tmp_path / "mu_sota_run" / "mu_sota_best.pt").exists()


def test_a_penalised_token_never_becomes_more_likely() -> None:
    """The earlier implementation divided negative logits; the sampling used here multiplies them."""
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.2)
    logits = torch.linspace(-5, 5, 11)[None]
    seen = torch.arange(11)[None]
    assert bool((penalty(seen, logits.clone()) <= logits).all())


def test_an_output_folder_that_cannot_be_one(
    capsys: pytest.CaptureFixture[str], tiny_corpus: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for out in (file, file / "below"):
        assert "cannot be used" in refused(capsys, "train", "--data", tiny_corpus, "--out", out, *TINY_SETTINGS)
    assert file.read_text() == "in the way"


def test_leakcheck_passes_a_trained_model(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "report.json"
    status, out, _ = mu_sota(capsys, "leakcheck", trained[1], "--json", file)
    assert status == 0
    assert out.splitlines()[0] == f"{trained[1] / 'best'}, weights as saved"
    assert re.search(r"^future +0 +1e-04  ok$", out, re.MULTILINE)
    assert re.search(r"no leak found within \d+ tokens in float32 by 11 checks: future, batch, row alone, length", out)
    record = json.loads(file.read_text())
    assert record["clean"] is True
    assert record["target"] == str(trained[1])
    assert record["machine"]["versions"]["torch"] == version("torch")
    assert [one["check"] for one in record["checks"] if one["verdict"] == "ok"][:2] == ["future", "batch"]


def test_leakcheck_has_a_status_of_its_own_for_a_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    status, out, _ = mu_sota(
        capsys, "leakcheck", "planted:planted", "--set", "name=no mask", "--json", file, "--train", "--seconds", "30"
    )
    assert status == 1
    assert "LEAK (future): later tokens change earlier predictions" in out
    assert "arises in mixer (Attention), after value, before out; path: mixer -> after -> head -> logits" in out
    assert "LEAK (uniform tokens): after" in out
    record = json.loads(file.read_text())
    assert record["clean"] is False
    assert record["checks"][0]["location"]["path"] == ["mixer", "after", "head"]
    assert record["set"] == {"name": "no mask"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such-model"], "there is no folder or file 'no/such-model' here"),
        (["quickstart", "--set", "num_hidden_layers=zero"], "num_hidden_layers"),
        (["quickstart", "--dtype", "int8"], "--dtype is 'int8'; choose float32"),
        (["quickstart", "--device", "toaster"], "--device 'toaster' cannot be used here"),
        (["quickstart", "--length", "129"], "length is 129, but the model has 128 positions"),
        (["planted:Attention", "--set", "diagonal=0"], "the model could not be called with token ids"),
        (["planted:Attention"], "planted:Attention takes the arguments (diagonal"),
        (["planted:ends"], "made no model: SystemExit: 1"),
        (["quickstart", "--device", "meta"], "--device 'meta' cannot be used here"),
        (["math:sin"], "the model could not be called with token ids"),
        (["planted:planted", "--set", "name=no mask", "--time-limit", "0"], "--time-limit (time_limit=) is 0"),
        (
            ["planted:planted", "--set", "name=weak", "--time-limit", "1e-9"],
            "the time limit of 1e-09 seconds was reached",
        ),
        (["planted:planted", "--set", "name=weak", "--output", "1"], "nothing [B, T, V] that is called '1'"),
    ],
)
def test_leakcheck_says_what_it_cannot_check(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "leakcheck", *arguments, "--json", tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_leakcheck_says_of_the_documented_example_what_the_document_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = Path(__file__).parents[2] / "docs"
    monkeypatch.chdir(docs / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])
    status, out, _ = mu_sota(capsys, "leakcheck", "my_model:build")
    assert status == 1
    shown = (docs / "leakcheck.md").read_text(encoding="utf-8")
    figure = re.compile(r"\d+(\.\d+)?(e-\d+)?")
    known = {figure.sub("#", line) for line in shown.splitlines()}
    assert [line for line in out.splitlines() if figure.sub("#", line) not in known] == []


def test_leakcheck_writes_to_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--json is the folder" in refused(capsys, "leakcheck", "quickstart", "--json", tmp_path)


def test_leakcheck_never_takes_a_breakdown_for_a_leak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr("mu_sota.leakcheck.checks.check", breaks)
    error: BaseException = ZeroDivisionError("oh")
    status, _, errors = mu_sota(capsys, "leakcheck", "quickstart", "--set", "num_hidden_layers=1")
    assert status == 2
    assert "ZeroDivisionError: oh" in errors
    assert "mu-sota: quickstart could not be checked" in errors
    error = KeyboardInterrupt()
    status, _, errors = mu_sota(capsys, "leakcheck", "quickstart", "--set", "num_hidden_layers=1")
    assert status == 130
    assert "no report was written" in errors
