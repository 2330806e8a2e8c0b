"""The writer of `metrics.jsonl`; its reader is in `saved/run_record.py`."""

from pathlib import Path
from typing import Any

from mu_sota.common.files import as_json, replacing
from mu_sota.saved.run_record import metrics_rows


class MetricsFile:
    """A row every few steps and one an epoch, appended as they come.

    Args:
        path: of the file.
        writes: True in the main process alone; the others only read the file when they rewind.

    Attributes:
        epochs: the rows of kind `epoch`, without the kind.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.epochs: list[dict[str, Any]] = []

    def append(self, kind: str, **row: Any) -> None:
        """Add a row."""
        if kind == "epoch":
            self.epochs.append(row)
        if self.writes:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(as_json({"kind": kind, **row}) + "\n")

    def rewind(self, step: int) -> None:
        """Remove the rows after the checkpoint at `step`: training repeats what they describe."""
        rows = [row for row in metrics_rows(self.path) if row["step"] <= step] if step else []
        self.epochs = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == "epoch"]
        if self.writes:
            with replacing(self.path) as temporary:
                text = "".join(as_json(row) + "\n" for row in rows)
                temporary.write_text(text, encoding="utf-8", newline="\n")
