"""The examples of docs/using.md, run as they stand there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import examples

# Examples of programs that this package does not bring, or that wait for a person: run by the tests named here.
ELSEWHERE = {
    "mu-sota inspect": "inspection/test_record.py",
    "mu-sota playground": "playground_model.py",
    "lm_eval run": "evaluation/test_lm_eval.py",
    "lm_eval_agreement": "evaluation/test_lm_eval.py",
    "transformers serve": "saved/test_serving.py",
    "curl": "saved/test_serving.py",
    "openai": "saved/test_serving.py",
    "peft": "model/test_others_code.py",
}


def here(code: str) -> bool:
    return not any(name in code for name in ELSEWHERE)


def test_every_example_runs(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The commands, then the Python code, each piece with names of its own, in one folder."""
    shutil.copytree(trained[1], tmp_path / "runs" / "mine")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    commands, code = (list(filter(here, examples(language))) for language in ("bash", "python"))
    assert len(commands) == 3
    assert len(code) == 6
    for program in (
        ["bash", "-euo", "pipefail", "-c", "".join(commands)],
        [sys.executable, "-c", "\n".join(f"exec({piece!r}, {{}})" for piece in code)],
    ):
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program[-1]}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "my-model" / "README.md").is_file()


def test_the_other_examples_are_run_by_the_tests_named() -> None:
    everything = "".join(examples("bash") + examples("python"))
    for name, test in ELSEWHERE.items():
        assert name in everything
        (file,) = Path(__file__).parent.rglob(test)
        assert name in file.read_text(encoding="utf-8"), f"{test} does not run {name}"
