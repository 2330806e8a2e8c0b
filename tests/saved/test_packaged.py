"""The model that comes with the package: small, whole, causal, and what commands take where no folder is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mu_sota import MuConfig, MuForCausalLM, cli
from mu_sota.causality import assert_causal
from mu_sota.data.corpus import load_corpus
from mu_sota.evaluation.metrics import evaluate
from mu_sota.inspection.steering import recorded_directions
from mu_sota.saved.export import export_model
from mu_sota.saved.load_save import load_trained
from mu_sota.saved.packaged import PACKAGED_MODEL
from mu_sota.saved.run_record import best_epoch, inspection_of, recorded

PROMPT = "The file object"


@pytest.fixture
def mu_sota(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def test_its_weights_are_small_and_in_bfloat16() -> None:
    file = PACKAGED_MODEL / "best" / "model.safetensors"
    assert file.stat().st_size <= 2.5e6
    assert {weight.dtype for weight in load_file(file).values()} == {torch.bfloat16}
    assert sum(each.stat().st_size for each in PACKAGED_MODEL.rglob("*") if each.is_file()) < 3e6


def test_it_is_the_preset_of_its_record_and_computes_in_float32() -> None:
    record = recorded(PACKAGED_MODEL)
    assert record["preset"] == "pocket"
    model, tokenizer = load_trained(PACKAGED_MODEL)
    preset = MuConfig.from_preset("pocket", vocab_size=len(tokenizer))
    assert {name: getattr(model.config, name) for name in record["model"]} == {
        name: getattr(preset, name) for name in record["model"]
    }
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    plain = MuForCausalLM.from_pretrained(PACKAGED_MODEL / "best")
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}


def test_it_is_causal() -> None:
    assert_causal(load_trained(PACKAGED_MODEL)[0])


@pytest.mark.usefixtures("cache")
def test_it_predicts_as_its_record_says() -> None:
    """The prose of another Python is a little different."""
    best = best_epoch(PACKAGED_MODEL)
    assert best is not None
    model, tokenizer = load_trained(PACKAGED_MODEL)
    found = evaluate(
        model, load_corpus("pydocs", tokenizer=tokenizer).validation, window=128, stride=128, batch_size=32
    )
    assert found.loss == pytest.approx(best["validation"]["loss"], abs=0.1)


def test_most_of_its_blocks_are_what_they_are_named_for_and_four_can_be_steered() -> None:
    found = inspection_of(PACKAGED_MODEL)
    assert len(found["legibility"]["best_blocks"]) >= 10
    assert found["labels"].startswith("ud-ewt"), "asked of labels by people"
    known = recorded_directions(found["steering"])
    assert [direction.block for direction in known] == ["P", "E", "A", "M"]
    assert {len(direction.vector) for direction in known} == {4}


def test_generate_takes_it_where_no_folder_is_named(mu_sota: Callable[..., tuple[int, str, str]]) -> None:
    asked = ("generate", "--prompt", PROMPT, "--temperature", "0", "--max-new-tokens", "20")
    status, plain, said = mu_sota(*asked)
    assert status == 0
    assert plain.startswith(PROMPT)
    assert "No DIR given: the model that comes with mu-sota, pocket" in said
    assert mu_sota("generate", PACKAGED_MODEL, *asked[1:])[1] == plain
    status, steered, _ = mu_sota(*asked, "--steer", "P=+4")
    assert status == 0
    assert steered != plain


def test_playground_takes_it_where_no_folder_is_named(
    mu_sota: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("mu_sota.playground.page.serve", lambda *asked: opened.append(asked))
    assert mu_sota("playground", "--no-browser")[0] == 0
    assert opened == [(PACKAGED_MODEL, 7860, False)]


def test_inspect_takes_it_where_no_folder_is_named_and_writes_here(
    mu_sota: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    def inspect_model(model: Any, corpus: Any, *more: Any) -> dict[str, Any]:
        asked.append((model.name_or_path, corpus.source))
        return inspection_of(PACKAGED_MODEL)

    monkeypatch.setattr("mu_sota.inspection.record.inspect_model", inspect_model)
    assert mu_sota("inspect")[0] == 0
    assert asked == [(str(PACKAGED_MODEL / "best"), "pydocs")]
    assert (tmp_path / "inspection" / "index.html").exists()
    assert sorted(path.name for path in PACKAGED_MODEL.iterdir()) == ["best", "inspection", "metrics.jsonl", "run.json"]


def test_it_can_be_exported_and_trained_on(tmp_path: Path, mu_sota: Callable[..., tuple[int, str, str]]) -> None:
    card = (export_model(PACKAGED_MODEL, tmp_path / "mine") / "README.md").read_text(encoding="utf-8")
    assert "were taught what their names say" in card
    text = tmp_path / "text.txt"
    text.write_text("a block of the state moves what it has read. " * 900, encoding="utf-8")
    begun = ("train", "--init-from", PACKAGED_MODEL, "--data", text, "--out", tmp_path / "run", "--max-steps", "2")
    assert mu_sota(*begun, "--set", "trackers=[]")[0] == 0
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["result"]
    shutil.rmtree(tmp_path / "run")
