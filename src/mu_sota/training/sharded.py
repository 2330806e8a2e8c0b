"""A checkpoint that FSDP2 wrote in parts, made whole, so that it can be gone on with without sharding."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from transformers import PreTrainedModel

# The names that `accelerate` gives the parts.
_WEIGHTS, _OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"


def is_sharded(checkpoint: Path) -> bool:
    """True if the weights lie there in parts."""
    return (checkpoint / _WEIGHTS).is_dir()


def make_whole(checkpoint: Path, model: PreTrainedModel, optimizer: Optimizer, folder: Path) -> None:
    """Write the files that `Trainer` reads of a checkpoint which is not sharded.

    Args:
        checkpoint: sharded.
        model: of the same form; it gets the weights.
        optimizer: of that model; it gets the moments.
        folder: to write to.
    """
    weights: dict[str, Any] = dict(get_model_state_dict(model))
    dcp.load({"model": weights}, checkpoint_id=checkpoint / _WEIGHTS, no_dist=True)
    model.load_state_dict(weights)
    moments = get_optimizer_state_dict(model, optimizer)
    dcp.load({"optimizer": cast(Any, moments)}, checkpoint_id=checkpoint / _OPTIMIZER, no_dist=True)
    set_optimizer_state_dict(model, optimizer, moments)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    for name in ("scheduler.pt", "trainer_state.json"):
        shutil.copyfile(checkpoint / name, folder / name)
