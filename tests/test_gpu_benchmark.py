"""`benchmarks/gpu.py` at tiny sizes on the CPU: on a GPU, where minutes count, nothing may be misspelt."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("right", "recipe", "beside", "decoding", "scaling", "research")


def run(out: Path, data: Path, *more: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out), "--device", "cpu"]
    done = subprocess.run([*command, "--data", str(data), *more], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(out: Path) -> dict[str, Any]:
    return {stage: json.loads((out / f"{stage}.json").read_text(encoding="utf-8")) for stage in STAGES}


def test_every_stage_runs_and_none_twice(tiny_corpus: Path, tmp_path: Path) -> None:
    """All parts have figures, the table has them, and a second call finds nothing left to do."""
    out = tmp_path / "out"
    printed = run(out, tiny_corpus, "--seconds", "900")
    first = records(out)
    for stage, record in first.items():
        assert record["parts"], stage
        for name, part in record["parts"].items():
            assert not {"error", "left_out"} & part.keys(), f"{stage}, {name}: {part}"
        assert record["machine"]["versions"]["torch"]
    table = printed[printed.rindex("On cpu") :]
    assert "the 5 epochs: s" in table
    assert "failed" not in table
    assert (out / "gpu.log").read_text(encoding="utf-8").endswith(table)
    rows = json.loads((out / "recipe-run.json").read_text(encoding="utf-8"))["metrics"]
    assert any(row["kind"] == "epoch" and row["samples"] for row in rows)
    assert len([*out.iterdir()]) <= 8  # as many come back from a lent machine

    run(out, tiny_corpus, "--only", "scaling")
    assert records(out)["scaling"]["parts"] == first["scaling"]["parts"]


def test_without_time_nothing_begins_and_it_is_said(tmp_path: Path) -> None:
    printed = run(tmp_path, tmp_path, "--seconds", "1")
    assert printed.count("no time is left") == len(STAGES)


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_stages import context

    return context


def test_what_a_part_leaves_behind(tmp_path: Path, context: Any) -> None:
    """Figures are kept, errors are figures too, what there was no time for is done the next time."""
    calls: list[str] = []

    def figures(name: str) -> dict[str, Any]:
        calls.append(name)
        if name == "broken":
            raise ValueError("no\nluck")
        return {"seconds": 1.0}

    for seconds in (100, 100, 3):
        stage = context.Context("right", tmp_path, "cpu", seconds, "data")
        for name in ("fine", "broken"):
            stage.part(name, lambda name=name: figures(name))
        if seconds == 3:
            stage.part("late", lambda: figures("late"))
    assert calls == ["fine", "broken"]
    parts = json.loads((tmp_path / "right.json").read_text(encoding="utf-8"))["parts"]
    assert parts["fine"]["seconds"] == 1.0
    assert parts["broken"]["error"] == "ValueError: no luck"
    assert parts["late"] == {"left_out": "3 s were left"}
    context.Context("right", tmp_path, "cpu", 100, "data").part("late", lambda: figures("late"))
    assert calls == ["fine", "broken", "late"]


def test_a_part_that_ends_the_process_is_not_tried_again(tmp_path: Path, context: Any) -> None:
    """As an illegal address on a GPU does; the other parts are done by the next process."""

    def die() -> dict[str, Any]:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        context.Context("right", tmp_path, "cpu", 100, "data").part("deadly", die)
    again = context.Context("right", tmp_path, "cpu", 100, "data")
    assert again.part("deadly", die)["error"] == "the process ended within this part"
    assert again.part("other", lambda: {"seconds": 1.0}) == {"seconds": 1.0}


def test_a_record_of_other_code_counts_for_nothing(
    tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.Context("right", tmp_path, "cpu", 100, "data").part("one", dict)
    assert "one" in context.Context("right", tmp_path, "cpu", 100, "data").parts
    monkeypatch.setattr(context, "_code_digest", lambda: "other")
    assert context.Context("right", tmp_path, "cpu", 100, "data").parts == {}
