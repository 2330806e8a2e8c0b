"""`metrics.jsonl` as it is written, cut off by a kill, and rewound to a checkpoint."""

import json
from pathlib import Path

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
