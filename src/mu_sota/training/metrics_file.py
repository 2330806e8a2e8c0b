"""The writer of `metrics.jsonl`."""

from pathlib import Path
from typing import Any

from mu_sota.common.files import as_json, replacing
from mu_sota.saved.run_record import metrics_rows


class MetricsFile:
    """`metrics.jsonl`: a row every few steps and one an epoch, appended as they come.

    The main process writes; the others only read what the file held when they were told to rewind.
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
        """Forget what came after the checkpoint at `step`: it is about to be done again."""
        rows = []
        if step:
            rows = [row for row in metrics_rows(self.path) if row["step"] <= step]
        self.epochs = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == "epoch"]
        if self.writes:
            with replacing(self.path) as temporary:
                text = "".join(as_json(row) + "\n" for row in rows)
                temporary.write_text(text, encoding="utf-8", newline="\n")
