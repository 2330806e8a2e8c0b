"""The record of a run: `run.json` and `metrics.jsonl` in its folder."""

import json
from pathlib import Path
from typing import Any

from mu_sota.evaluation.metrics import loss_of
from mu_sota.model.errors import InputError

BEST_FOLDER = "best"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


def recorded(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder, or nothing.

    Raises:
        InputError: the record cannot be read.
    """
    record = folder / RUN_FILE
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"the record {record} is damaged ({error}); move it away to do without it") from None


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the run that a folder is, or whose best model it holds, or nothing."""
    return recorded(_run_of(folder))


def metrics_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]  # a kill can leave half a last line


def best_epoch(folder: Path) -> dict[str, Any] | None:
    """Of the same run, the row of its metrics for the epoch that `best/` holds, or None."""
    epochs = [row for row in metrics_rows(_run_of(folder) / METRICS_FILE) if row["kind"] == "epoch"]
    return min(epochs, key=lambda row: loss_of(row["validation"]), default=None)


def _run_of(folder: Path) -> Path:
    return folder.parent if folder.name == BEST_FOLDER else folder
