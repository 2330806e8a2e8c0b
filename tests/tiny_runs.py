"""Tiny training runs, in this process and as a command, and how to kill one at a given moment."""

import json
from pathlib import Path
from typing import Any

from mu_sota.settings.load import load_settings
from mu_sota.training.run import train
from mu_sota.training.run_checks import RunCheck

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "seed": 1,  # one of those that learn in both epochs, with any dropout mask
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "window": 32,
    "stride": 16,
    "batch_size": 8,
    "num_epochs": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 20,
    "log_steps": 1,
    "sample_tokens": 5,
    "prompts": ["the state", "a block"],
    "trackers": [],
}


def run(corpus: Path, out: Path, resume: bool = False, **changes: Any) -> list[RunCheck]:
    return train("mu-sota", str(corpus), out, load_settings("mu-sota", None, TINY | changes), resume)


def rows(out: Path) -> list[dict[str, Any]]:
    """The record of a run, without what depends on the clock."""
    clock = ("seconds", "tokens_per_second")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out) if row["kind"] == "step"]


# Rows cover several steps, and a checkpoint or a kill falls between two of them.
AS_USERS_DO: dict[str, Any] = {"trackers": ["tensorboard"], "log_steps": 5}


def command(corpus: Path, out: Path, *more: str, **changes: Any) -> list[str]:
    settings = [f"--set={key}={json.dumps(value)}" for key, value in TINY.items() if key not in changes]
    settings += [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]
    return ["train", "--preset", "mu-sota", "--data", str(corpus), "--out", str(out), *settings, *more]


KILL = """
import os, signal, sys
from mu_sota import cli
from mu_sota.training import run as train
from mu_sota.training import trainer
moment, step = sys.argv[1], int(sys.argv[2])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, condition):
    original = getattr(owner, name)
    def patched(self, *arguments, **named):
        if condition(self):
            die()
        return original(self, *arguments, **named)
    setattr(owner, name, patched)

reached = lambda trainer: trainer.state.global_step >= step
if moment == "in a step":
    before(trainer.MuTrainer, "training_step", reached)
elif moment == "in a checkpoint":
    before(trainer.MuTrainer, "_save_rng_state", reached)
elif moment == "in the evaluation":
    before(trainer.MuTrainer, "evaluate", reached)
elif moment == "after the best model":
    before(trainer.MuTrainer, "reset_running_totals", reached)
elif moment == "before the checks":
    train.judge_run = die
cli.main(sys.argv[3:])
"""
