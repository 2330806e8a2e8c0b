"""The best model of a run: where it is saved, and whether it loads again."""

from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.optim import Optimizer

from mu_sota.common.files import replacing
from mu_sota.evaluation.metrics import Score
from mu_sota.model.configuration import MuConfig
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.load_save import save_trained
from mu_sota.saved.run_record import BEST_FILE, BEST_FOLDER

from .trainer import READOUTS, MuTrainer


def save_best(trainer: MuTrainer, epoch: int, score: Score) -> None:
    """Write `best/` and `mu_sota_best.pt`. Every process must call it."""
    weights, optimizer = get_state_dict(
        trainer.network,
        cast(Optimizer, trainer.optimizer),
        options=StateDictOptions(full_state_dict=True, cpu_offload=True),
    )
    weights = {name: value for name, value in weights.items() if not name.startswith(f"{READOUTS}.")}
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.network)
    with replacing(trainer.out / BEST_FILE) as temporary:
        content = {
            "model": weights,
            "optimizer": optimizer,
            "config": model.config.to_dict(),
            "epoch": epoch,
            "step": trainer.state.global_step,
            "validation": score.as_dict(),
        }
        torch.save(content, temporary)
    with replacing(trainer.out / BEST_FOLDER) as temporary:
        save_trained(model, trainer.corpus.tokenizer, trainer.settings, temporary, weights)


def best_loads(out: Path) -> bool:
    """True if both copies of the best model load and hold the same weights."""
    try:
        content = torch.load(out / BEST_FILE, weights_only=True, map_location="cpu")
        model = MuForCausalLM(MuConfig(**content["config"]))
        model.load_state_dict(content["model"])
        copy = MuForCausalLM.from_pretrained(out / BEST_FOLDER).state_dict()
        return all(torch.equal(value, copy[name]) for name, value in model.state_dict().items())
    except Exception:  # whatever a damaged file provokes, the answer is no
        return False
