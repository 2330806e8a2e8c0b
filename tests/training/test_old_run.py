"""A run that an older version began, interrupted at step 100 of 142, ends as it did there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mu_sota import MuConfig, MuForCausalLM, cli

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"
LOSS = 1.6399434482633992
"""Validation loss after the last step in the older version, on the machine that the run's record names."""


@pytest.mark.skipif(np.__version__.startswith("1."), reason="numpy 2 wrote the random state of the old checkpoint")
def test_an_old_run_resumes_to_the_loss_it_had_then(
    make_corpus: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    before = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--data", str(make_corpus(tmp_path)), "--out", str(run), "--resume"])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["result"]["best"]["step"] == 142
    assert record["result"]["best"]["validation"]["loss"] == pytest.approx(LOSS, abs=1e-3)
    after = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before


def test_the_best_model_of_an_old_run_loads() -> None:
    folder = AutoModelForCausalLM.from_pretrained(OLD_RUN / "best")
    content = torch.load(OLD_RUN / "mu_sota_best.pt", weights_only=True)
    model = MuForCausalLM(MuConfig(**content["config"]))
    model.load_state_dict(content["model"])
    ids = torch.arange(20)[None]
    assert torch.equal(model.eval()(ids).logits, folder(ids).logits)
