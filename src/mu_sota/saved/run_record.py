"""The folder of a run: its record in `run.json` and `metrics.jsonl`, and the folder of its best model.

Needs no PyTorch, so that a wrong folder is refused at once.
"""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, PositiveInt

from mu_sota.common.files import read_json
from mu_sota.common.outside import in_one_sentence, parse_object, read_text
from mu_sota.model.errors import InputError

BEST_FOLDER = "best"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
BEST_FILE = "mu_sota_best.pt"
LOCK_FILE = ".lock"
_MOST_METRICS = 2**30
INSPECTION_FOLDER, INSPECTION_FILE = "inspection", "inspection.json"


def recorded(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder, or nothing.

    Raises:
        InputError: the record cannot be read.
    """
    return read_json(folder / RUN_FILE, "put back a copy of it, or give another --out", "the record ")


def resumable(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder with all that is needed to go on with it or to repeat it, or nothing.

    Raises:
        InputError: the record cannot be read, or lacks some of that.
    """
    record = recorded(folder)
    if record:
        with in_one_sentence(f"the record {folder / RUN_FILE} cannot be used", "put back a copy of it"):
            _Resumable.model_validate(record)
    return record


class _Part(BaseModel, extra="forbid"):
    end: PositiveInt
    shape: Literal["cycle", "constant"]


class _Begun(BaseModel):
    folder: str
    weights: str | None


class _Resumable(BaseModel):
    """The parts of a record that a run is resumed by; older versions had fewer."""

    preset: str
    data: str
    data_fingerprint: str
    settings: dict[str, Any]
    model: dict[str, Any]
    machine: dict[str, Any]
    requested: dict[str, Any] = {}
    starts: list[Any] = []
    earlier_results: list[Any] = []
    schedule: list[_Part] | None = Field(None, min_length=1)
    init_from: _Begun | None = None
    result: "_Result | None" = None


class _Result(BaseModel):
    text: str
    checks: list[tuple[bool, str, str]]


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the run that a folder is, or whose best model it holds, or nothing."""
    return recorded(_run_of(folder))


def inspection_of(folder: Path) -> dict[str, Any]:
    """What `mu-sota inspect` recorded of the run that a folder is, or whose best model it holds, or nothing.

    Raises:
        InputError: the record cannot be read.
    """
    file = inspection_folder(folder) / INSPECTION_FILE
    return read_json(file, "inspect the model again", "the record ")


def inspection_folder(folder: Path) -> Path:
    """Where `mu-sota inspect` leaves what it found of the same run, unless told otherwise."""
    return _run_of(folder) / INSPECTION_FOLDER


def metrics_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none where there is no file.

    Raises:
        InputError: it is no file of such rows.
    """
    if not path.exists():
        return []
    with in_one_sentence(f"the rows in {path} cannot be read", "put back a copy of it, or remove it"):
        lines = read_text(path, most=_MOST_METRICS).split("\n")[:-1]  # a kill can leave half a last line
        rows = [parse_object(line) for line in lines]
        for row in rows:
            _Row.model_validate(row)
        return rows


class _Row(BaseModel):
    """What every row of `metrics.jsonl` has."""

    kind: str
    step: int


def loss_of(score: dict[str, Any]) -> float:
    """The loss in what `Score.as_dict` gave, for comparing: infinite where it is None."""
    return math.inf if score["loss"] is None else float(score["loss"])


def best_epoch(folder: Path) -> dict[str, Any] | None:
    """Of the same run, the row of its metrics for the validation that `best/` comes from, or None."""
    path = _run_of(folder) / METRICS_FILE
    scored = [row for row in metrics_rows(path) if row["kind"] in ("epoch", "validation")]
    with in_one_sentence(f"the rows in {path} cannot be used", "put back a copy of it, or remove it"):
        return min(scored, key=lambda row: loss_of(row["validation"]), default=None)


def refuse_existing_run(folder: Path, resume: bool = False) -> None:
    """A run is not overwritten, nor is what is left of one.

    Args:
        folder: of the run.
        resume: go on with a run that is whole.

    Raises:
        InputError: the folder holds a run, and it is not to be resumed; or parts of one without its record.
    """
    if (folder / RUN_FILE).exists():
        if not resume:
            raise InputError(f"{folder} already holds a run; add --resume to go on with it, or give another --out")
        return
    parts = [METRICS_FILE, BEST_FOLDER, BEST_FILE, "checkpoint-*/trainer_state.json", "checkpoint-*/progress.json"]
    left = sorted(path.relative_to(folder).as_posix() for part in parts for path in folder.glob(part))
    if left:
        raise InputError(
            f"{folder} holds {left[0]} of a run, but not its {RUN_FILE}, which says what run that is; put it back, or "
            f"give another --out"
        )


def model_folder(folder: Path) -> Path:
    """Where the files of a model are: in the best/ of a run's folder, or in the folder itself.

    Raises:
        InputError: the folder is missing, or holds no model.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the --out of a training run, or its best/ folder")
    best = folder / BEST_FOLDER if (folder / BEST_FOLDER / "config.json").exists() else folder
    if not (best / "config.json").exists():
        raise InputError(
            f"{folder} holds no trained model: neither best/config.json nor config.json is there; "
            f"a run writes best/ after its first epoch"
        )
    return best


def _run_of(folder: Path) -> Path:
    return folder.parent if folder.name == BEST_FOLDER else folder
