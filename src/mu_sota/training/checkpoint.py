"""Checkpoints: where they are written, how they are found, and what a resumed run reads from them.

A checkpoint is a folder `checkpoint-STEP` in the run's folder: the files of `transformers.Trainer` (weights, optimizer,
schedule, random states, step) and `progress.json`. `Trainer` writes file by file, here into a temporary folder; then
one rename makes the checkpoint appear complete. So a run that is killed at any moment has a complete checkpoint.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from mu_sota.common.files import write_json

from .running_totals import RunningTotals

_PROGRESS_FILE = "progress.json"


class Progress(NamedTuple):
    """What a resumed run needs beside the library's own files.

    Attributes:
        tally: running totals of the epoch.
        logged: those of them that the last row of `metrics.jsonl` has covered.
        first_loss: training loss at the start of the run.
    """

    tally: RunningTotals
    logged: RunningTotals
    first_loss: float | None


def temporary_folder(out: Path, step: int) -> Path:
    """The folder in which `Trainer` writes the checkpoint of a step."""
    return out / f".checkpoint-{step}.tmp"


def publish(out: Path, step: int, progress: Progress) -> None:
    """Complete the checkpoint that `Trainer` has written, make it appear in `out`, and remove older ones."""
    temporary, name = temporary_folder(out, step), f"checkpoint-{step}"
    written, checkpoint = temporary / name, out / name
    write_json(written / _PROGRESS_FILE, progress._asdict())
    (written / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nobody reads it
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(written, checkpoint)
    shutil.rmtree(temporary)
    for other in find_checkpoints(out):
        if other != checkpoint:
            shutil.rmtree(other)


def find_checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first; a folder of that name that is not ours is none."""
    ours = [file.parent for file in out.glob(f"checkpoint-*/{_PROGRESS_FILE}")]
    return sorted(ours, key=lambda folder: int(folder.name.rpartition("-")[2]))


def read_progress(checkpoint: Path) -> Progress:
    """What `publish` added to a checkpoint."""
    progress = json.loads((checkpoint / _PROGRESS_FILE).read_text(encoding="utf-8"))
    return Progress(RunningTotals(*progress["tally"]), RunningTotals(*progress["logged"]), progress["first_loss"])
