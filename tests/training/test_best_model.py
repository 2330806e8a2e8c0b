"""Whether the best model of a run loads again."""

import shutil
from pathlib import Path

import torch

from mu_sota.training.best_model import best_loads

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"


def test_a_best_model_that_is_damaged_or_missing_does_not_load(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    file = run / "mu_sota_best.pt"
    assert best_loads(run)
    content = torch.load(file, weights_only=True)
    content["model"]["lm_head.bias"] += 1
    torch.save(content, file)
    assert not best_loads(run), "the two copies differ"
    file.write_bytes(file.read_bytes()[:1000])
    assert not best_loads(run)
    file.unlink()
    assert not best_loads(run)
