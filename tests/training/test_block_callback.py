"""Blocks in TensorBoard: sensitivities after every epoch, and legibility where there are labelled texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from mu_sota import MuForCausalLM
from mu_sota.data.corpus import load_corpus
from mu_sota.data.windows import EvalWindows
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings
from mu_sota.training.run import train

NAMES = [block.name for block in BLOCKS]


def run(corpus: Path, out: Path, **changes: Any) -> EventAccumulator:
    settings = load_settings("mu-sota", overrides={**TINY, "trackers": ["tensorboard"], **changes})
    train("mu-sota", str(corpus), out, settings)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return events


def test_sensitivities_are_those_of_the_model(tiny_corpus: Path, tmp_path: Path) -> None:
    events = run(tiny_corpus, tmp_path / "out", num_epochs=2)
    logged = [[entry.value for entry in events.Scalars(f"eval/sensitivity_{name}")] for name in NAMES]
    assert np.shape(logged) == (16, 2), "one an epoch"
    model = MuForCausalLM.from_pretrained(tmp_path / "out" / "best").eval()
    corpus = load_corpus(str(tiny_corpus), vocab_size=TINY["vocab_size"])
    windows = EvalWindows(corpus.validation.tokens, 32, stride=32)
    ids = torch.stack([windows[number]["input_ids"] for number in range(0, len(windows), -(-len(windows) // 8))])
    with torch.no_grad():
        own = model(ids, output_sensitivities=True).sensitivities[0].mean((0, 1))
    np.testing.assert_allclose([values[1] for values in logged], own, rtol=1e-4)
    assert len(events.Images("sensitivities")) == 2
    assert "eval/legibility" not in events.Tags()["scalars"]


def test_legibility_where_texts_have_labels(tiny_corpus: Path, treebank: Path, tmp_path: Path) -> None:
    events = run(tiny_corpus, tmp_path / "out", labels=str(treebank))
    (entry,) = events.Scalars("eval/legibility")
    assert 0 <= entry.value <= 15 / 16
    assert 1 <= events.Scalars("eval/own_rank_S")[0].value <= 16
    assert len(events.Images("legibility")) == 1


def test_measuring_changes_no_loss(tiny_corpus: Path, treebank: Path, tmp_path: Path) -> None:
    rows = []
    for name, changes in (("with", {"labels": str(treebank)}), ("without", {"trackers": []})):
        run_settings: dict[str, Any] = {**TINY, "num_epochs": 2, "trackers": ["tensorboard"], **changes}
        train("mu-sota", str(tiny_corpus), tmp_path / name, load_settings("mu-sota", overrides=run_settings))
        rows.append([line for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines() if "epoch" in line])
    losses = [[line.split('"validation"')[1].split(",")[0] for line in lines] for lines in rows]
    assert losses[0] == losses[1]


def test_a_missing_folder_is_refused_before_anything_is_written(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the setting labels is 'nowhere', which is no folder"):
        run(tiny_corpus, tmp_path / "out", labels="nowhere")
    assert not (tmp_path / "out").exists()
