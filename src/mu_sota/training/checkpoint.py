"""Checkpoints: how they are written, found, verified, and what a resumed run reads from them.

A checkpoint is a folder `checkpoint-STEP` in the run's folder: the files of `transformers.Trainer` (weights, optimizer,
schedule, random states, step), `progress.json`, the run's `metrics.jsonl` so far and, last, `manifest.json`: which run
it belongs to, and the checksum of every other file. `Trainer` writes file by file, here into a temporary folder; then
all of it is forced to the disk, and one rename makes the checkpoint appear complete. The two newest are kept. So a run
that is killed at any moment has a complete checkpoint, and another if that one is damaged later.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from mu_sota.common.files import checksum, read_sealed, sync, write_json, write_sealed
from mu_sota.common.outside import parse_object, read_text, reason_of
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import METRICS_FILE

from .running_totals import RunningTotals

_PROGRESS_FILE = "progress.json"
MANIFEST_FILE = "manifest.json"
_STATE_FILE = "trainer_state.json"
_WEIGHTS_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.pt"
_KEPT = 2


class Progress(NamedTuple):
    """What a resumed run needs beside the library's own files.

    Attributes:
        tally: running totals of the epoch.
        logged: those of them that the last row of `metrics.jsonl` has covered.
        first_loss: training loss at the start of the run.
        usual: recent training loss of a step, by which a spike is known, and of how many steps it is.
        more: what the run's own callbacks need.
    """

    tally: RunningTotals
    logged: RunningTotals
    first_loss: float | None
    usual: tuple[float, int] | None = None
    more: dict[str, Any] = {}


class Damaged(Exception):
    """A checkpoint that cannot be used; the message says why."""


def temporary_folder(out: Path, step: int) -> Path:
    """The folder in which `Trainer` writes the checkpoint of a step."""
    return out / f".checkpoint-{step}.tmp"


def publish(out: Path, step: int, progress: Progress, belongs: dict[str, Any]) -> None:
    """Complete the checkpoint that `Trainer` has written, make it appear in `out`, and remove all but the one before.

    Args:
        out: folder of the run.
        step: of the checkpoint.
        progress: to be kept in it.
        belongs: `identity` of the run, and the `conditions` under which it trains.
    """
    temporary, name = temporary_folder(out, step), f"checkpoint-{step}"
    written, checkpoint = temporary / name, out / name
    write_json(written / _PROGRESS_FILE, progress._asdict())
    if (out / METRICS_FILE).exists():
        shutil.copyfile(out / METRICS_FILE, written / METRICS_FILE)
    (written / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nobody reads it
    sums = {name: checksum(written / name) for name in _files(written)}
    write_sealed(written / MANIFEST_FILE, {"step": step, **belongs, "checksums": sums})
    sync(written)
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(written, checkpoint)
    sync(out, deep=False)
    shutil.rmtree(temporary)
    # Those of later steps are what a resumed run could not use.
    kept = [other for other in find_checkpoints(out) if _step_of(other) <= step][-_KEPT:]
    remove_checkpoints(out, kept)


def find_checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first, damaged ones too; a folder that is not ours is none."""
    names = (MANIFEST_FILE, _PROGRESS_FILE, _STATE_FILE)
    ours = {file.parent for name in names for file in out.glob(f"checkpoint-*/{name}")}
    return sorted((folder for folder in ours if re.fullmatch(r"checkpoint-\d+", folder.name)), key=_step_of)


def remove_checkpoints(out: Path, kept: list[Path]) -> None:
    """Remove those in a run's folder but for some."""
    for checkpoint in find_checkpoints(out):
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def require_usable(checkpoint: Path, identity: dict[str, Any], steps: int) -> dict[str, Any]:
    """Verify a checkpoint.

    Args:
        checkpoint: to verify.
        identity: of the run that is to go on from it.
        steps: of that run.

    Returns:
        The conditions under which it was made; nothing where it does not say them, as one of an older version.

    Raises:
        Damaged: a file is missing, damaged, or holds a number that is not finite.
        InputError: it belongs to another run.
    """
    manifest: dict[str, Any] = {"conditions": {}}
    if (checkpoint / MANIFEST_FILE).exists() or "more" in _read(checkpoint / _PROGRESS_FILE):  # not of an older version
        manifest = _manifest(checkpoint)
        for key, then in manifest["identity"].items():
            if (now := identity.get(key, then)) != then:
                raise InputError(
                    f"{checkpoint} belongs to another run: its {key} is {then!r}, and here it is {now!r}; remove it, "
                    f"or put back the run.json that it was written with"
                )
    step = _read(checkpoint / _STATE_FILE).get("global_step")
    if step != _step_of(checkpoint) or not isinstance(step, int):
        raise Damaged(f"{_STATE_FILE} says step {step!r}")
    if step > steps:
        raise Damaged(f"it is of step {step:,}, and the run has {steps:,}")
    read_progress(checkpoint)
    for name, tensor in _tensors(checkpoint):
        if not torch.isfinite(tensor).all():
            raise Damaged(f"{name} holds a number that is not finite")
    return dict(manifest["conditions"])


def read_progress(checkpoint: Path) -> Progress:
    """What `publish` added to a checkpoint.

    Raises:
        Damaged: it cannot be read.
    """
    progress = _read(checkpoint / _PROGRESS_FILE)
    try:
        tally, logged = (RunningTotals(*map(float, progress[name])) for name in ("tally", "logged"))
        first, usual = progress["first_loss"], progress.get("usual")
        return Progress(
            tally,
            logged,
            None if first is None else float(first),
            None if usual is None else (float(usual[0]), int(usual[1])),
            dict(progress.get("more", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Damaged(f"{_PROGRESS_FILE} cannot be used ({reason_of(error)})") from None


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest, by which every file of the checkpoint is verified."""
    try:
        manifest = read_sealed(checkpoint / MANIFEST_FILE)
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST_FILE} cannot be read ({reason_of(error)})") from None
    for name, expected in manifest["checksums"].items():
        file = checkpoint / name
        if not file.is_file():
            raise Damaged(f"{name} is missing")
        try:
            # The system's own files say that they are empty, and some wait for what may never come.
            found = checksum(file) if file.stat().st_size else None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise Damaged(f"{name} holds other bytes than were written")
    return manifest


def _tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights and moments of a checkpoint that is not sharded.

    Raises:
        Damaged: they cannot be read.
    """
    if not (checkpoint / _WEIGHTS_FILE).exists() and any(path.is_dir() for path in checkpoint.iterdir()):
        return  # sharded: its parts are verified by their checksums
    try:
        weights = load_file(checkpoint / _WEIGHTS_FILE)
        content = torch.load(checkpoint / _OPTIMIZER_FILE, weights_only=True, map_location="cpu")
        moments = {f"{number}.{name}": value for number, of in content["state"].items() for name, value in of.items()}
    except Exception as error:  # whatever a damaged file provokes
        raise Damaged(f"weights or optimizer cannot be read ({reason_of(error)})") from None
    yield from ((f"the weight {name}", tensor) for name, tensor in weights.items())
    yield from ((f"the optimizer's {name}", value) for name, value in moments.items() if torch.is_tensor(value))


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _read(file: Path) -> dict[str, Any]:
    try:
        return parse_object(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{file.name} cannot be read ({reason_of(error)})") from None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
