"""The writer of `metrics.jsonl`; its reader is in `saved/run_record.py`."""

from pathlib import Path
from typing import Any

from mu_sota.common.files import as_json, replacing
from mu_sota.saved.run_record import METRICS_FILE, loss_of, metrics_rows

_SCORED = ("validation", "epoch")  # kinds of rows


class MetricsFile:
    """A row every few steps, one for each validation within an epoch and one an epoch, appended as they come.

    Args:
        path: of the file.
        writes: True in the main process alone; the others only read the file when they rewind.

    Attributes:
        rows: those of the two latter kinds.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.rows: list[dict[str, Any]] = []

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of kind `epoch`, without the kind."""
        return [_without_kind(row) for row in self.rows if row["kind"] == "epoch"]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """All rows with a validation, in their order, without the kind."""
        return [_without_kind(row) for row in self.rows]

    def since_best(self) -> int:
        """Validations after the one with the least loss."""
        losses = [loss_of(row["validation"]) for row in self.rows]
        return len(losses) - 1 - losses.index(min(losses))

    def append(self, kind: str, **row: Any) -> None:
        """Add a row."""
        if kind in _SCORED:
            self.rows.append({"kind": kind, **row})
        if self.writes:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(as_json({"kind": kind, **row}) + "\n")

    def rewind(self, step: int, checkpoint: Path | None = None) -> str:
        """Go back to the rows that a checkpoint knows: training repeats what the later ones describe.

        Args:
            step: of the checkpoint, or 0.
            checkpoint: with a copy of the file as it was; one of an older version has none.

        Returns:
            What is wrong with the file, if it does not begin as it was then, or nothing.
        """
        wrong = ""
        if checkpoint is not None and (checkpoint / METRICS_FILE).exists():
            text = (checkpoint / METRICS_FILE).read_text(encoding="utf-8")
            found = self.path.read_bytes() if self.path.exists() else None
            if found is None or not found.startswith(text.encode()):
                lost = text.count("\n") - (0 if found is None else found.count(b"\n"))
                what = f"lacks {lost:,} rows that were written" if lost > 0 else "has been changed"
                what = "is missing" if found is None else what
                wrong = f"{self.path} {what}: it is put back from {checkpoint.name}."
            rows = metrics_rows(checkpoint / METRICS_FILE)
        else:
            rows = [row for row in metrics_rows(self.path) if row["step"] <= step] if step else []
            text = "".join(as_json(row) + "\n" for row in rows)
        self.rows = [row for row in rows if row["kind"] in _SCORED]
        if self.writes:
            with replacing(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        return wrong


def _without_kind(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "kind"}
