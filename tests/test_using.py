"""Every example of docs/using.md, run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "using.md"
# Blocks that need more than this package brings are run where that is tested.
ELSEWHERE = {"lm_eval": "test_lm_eval.py", "transformers serve": "test_serving.py", "playground": "test_playground.py"}


def blocks() -> list[tuple[str, str]]:
    """(language, code) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_example_runs(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """In their order, in one folder; the Python ones in one process, each with names of its own."""
    shutil.copytree(trained[1], tmp_path / "runs" / "mine")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    pending: list[str] = []

    def run(command: list[str]) -> None:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"

    def run_python() -> None:
        if pending:
            run([sys.executable, "-c", "\n".join(f"exec({code!r}, {{}})" for code in pending)])
            pending.clear()

    for language, code in blocks():
        if any(name in code for name in ELSEWHERE):
            continue
        assert language in ("bash", "python")
        if language == "python":
            pending.append(code)
        else:
            run_python()
            run(["bash", "-euo", "pipefail", "-c", code])
    run_python()


@pytest.mark.parametrize(("name", "test"), ELSEWHERE.items())
def test_what_is_run_elsewhere_is_there(name: str, test: str) -> None:
    """The other tests take their commands from the page, so that they cannot differ."""
    assert any(name in code for _, code in blocks())
    assert "using.md" in (Path(__file__).parent / test).read_text(encoding="utf-8")
