"""`benchmarks/gpu.py` at tiny sizes on the CPU: on a GPU, where minutes count, nothing may be misspelt."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mu_sota.data.corpus import load_corpus, save_corpus

ROOT = Path(__file__).parents[1]
STAGES = ("right", "recipe", "beside", "decoding", "scaling", "research")


def run(out: Path, data: Path, *more: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out), "--device", "cpu"]
    done = subprocess.run([*command, "--data", str(data), *more], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _prepared(corpus: Path, folder: Path) -> Path:
    """A folder as in the pack, of the full preset's tokenizer."""
    save_corpus(load_corpus(str(corpus), vocab_size=50_000), folder / "tokens")
    return folder / "tokens"


def records(out: Path) -> dict[str, Any]:
    return {stage: json.loads((out / f"{stage}.json").read_text(encoding="utf-8")) for stage in STAGES}


def test_every_stage_runs_and_none_twice(tiny_corpus: Path, tmp_path: Path) -> None:
    """All parts have figures, the table has them, and a second call finds nothing left to do; on prepared tokens."""
    out, tiny_corpus = tmp_path / "out", _prepared(tiny_corpus, tmp_path)
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

    for seconds in (100, 100, 3):  # the first two write and read the record
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


def test_a_record_of_other_code_counts_for_nothing_and_is_kept(
    tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.Context("right", tmp_path, "cpu", 100, "data").part("one", dict)
    before = context.Context("right", tmp_path, "cpu", 100, "data").record
    assert "one" in before["parts"]
    monkeypatch.setattr(context, "_code_digest", lambda: "other")
    assert context.Context("right", tmp_path, "cpu", 100, "data").parts == {}
    (kept,) = tmp_path.glob("right-cpu-tiny-sizes-*.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["parts"] == before["parts"]


@pytest.mark.parametrize("stubborn", [False, True], ids=["stops when told", "has to be killed"])
def test_a_part_that_is_cut_off_is_done_the_next_time(
    stubborn: bool, tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to stop, and a training saves then; whatever does not stop is killed, its children too."""
    import gpu

    monkeypatch.setattr(gpu, "_TO_STOP", 1)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else "pass"
    code = f"""
import sys
sys.path[:0] = {[str(ROOT / "benchmarks"), str(ROOT / "src")]!r}
import signal, time
from pathlib import Path
from gpu_stages import context
signal.signal(signal.SIGTERM, context._stop)
stage = context.Context("right", Path({str(tmp_path)!r}), "cpu", 100, "data")
stage.part("done", lambda: {{"seconds": 1.0}})
print("ready")
def slow():
    {deaf}
    time.sleep(60)
stage.part("slow", slow)
"""
    command = [sys.executable, "-c", code, "--out", str(tmp_path), "--stage", "right"]
    printed: list[str] = []
    assert gpu.run_process(command, 12, printed.append, {})
    assert any("ready" in line for line in printed), printed
    parts = json.loads((tmp_path / "right.json").read_text(encoding="utf-8"))["parts"]
    assert parts["done"]["seconds"] == 1.0
    assert "left_out" in parts["slow"]
    stage = context.Context("right", tmp_path, "cpu", 100, "data")
    assert stage.part("slow", lambda: {"seconds": 2.0}) == {"seconds": 2.0}


def test_a_stage_that_cannot_be_begun_is_not_tried_for_ever(tmp_path: Path, context: Any) -> None:
    """Once without the kernels for GPUs, which it tries first, and no more."""
    import gpu

    data = SimpleNamespace(out=tmp_path, device="nonsense", data="data")
    printed: list[str] = []
    gpu.run_stage("right", time.monotonic() + 60, data, printed.append)  # type: ignore[arg-type]
    assert sum(line.startswith("--- right, for") for line in printed) == 2
    assert printed[-1] == "--- right: it cannot be begun"
