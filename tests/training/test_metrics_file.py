"""`metrics.jsonl` as it is written, cut off by a kill, and rewound to a checkpoint."""

import json
from pathlib import Path

import pytest

from mu_sota.training.metrics_file import MetricsFile


def test_the_record_survives_half_a_line_and_odd_line_ends(tmp_path: Path) -> None:
    """Generated text can hold any character, also those that some functions take for the end of a line."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl", writes=True)
    metrics.append("epoch", step=1, samples=["a\u2028b\x85c\x0bd\re\nf"])
    metrics.append("step", step=2, loss=1.0)
    with metrics.path.open("a") as file:
        file.write('{"kind": "step", "step": 3, "nested": {"loss": 1}')
    before = metrics.epochs
    metrics.rewind(1)
    assert metrics.epochs == before
    metrics.append("step", step=2, loss=1.0)
    lines = metrics.path.read_text(encoding="utf-8").strip("\n").split("\n")
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    main, other = (MetricsFile(tmp_path / "metrics.jsonl", writes) for writes in (True, False))
    main.append("epoch", step=4)
    other.append("epoch", step=4)
    other.append("epoch", step=8)
    other.rewind(4)
    assert main.path.read_text() == '{"kind": "epoch", "step": 4}\n'
    assert other.epochs == main.epochs


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "is missing"),
        ("", "lacks 2 rows that were written"),
        ('{"kind": "step", "step": 1}\n', "lacks 1 rows"),
        ('{"kind": "step", "step": 1}\n{"kind": "step", "step": 9}\n', "has been changed"),
        ("junk\n\n", "has been changed"),
    ],
)
def test_a_file_that_is_other_than_the_checkpoint_knows_is_said_and_put_back(
    tmp_path: Path, content: str | None, what: str
) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    metrics = MetricsFile(tmp_path / "metrics.jsonl", writes=True)
    metrics.append("step", step=1)
    metrics.append("epoch", step=2, validation={"loss": 1.0})
    written = metrics.path.read_bytes()
    (tmp_path / "checkpoint-2" / "metrics.jsonl").write_bytes(written)
    metrics.append("step", step=3)
    assert metrics.rewind(2, tmp_path / "checkpoint-2") == "", "later rows are what training repeats"
    if content is None:
        metrics.path.unlink()
    else:
        metrics.path.write_text(content)
    metrics.rows = []
    assert what in metrics.rewind(2, tmp_path / "checkpoint-2")
    assert metrics.path.read_bytes() == written
    assert [row["step"] for row in metrics.validations] == [2]
