"""lm-evaluation-harness on an exported model: its figures are those of `mu-sota evaluate`, by its conventions."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import USING, examples

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from lm_eval_agreement import FIGURES, compare

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")

WINDOW = 24  # of 32 positions: what the harness is told counts, not what the model could do
DOCUMENTS = [
    "  The tokens — naïve, 漢字 —\r\nread\t each  state.\n" * 40,
    "Short, and within one window.",
    "[1, 2]",  # a template of the harness would make a list of it
    "<BOS> and <EOS> are ten characters of text.\n" * 3,
    " state" * 61,  # windows with the same tokens, the last of which is scored in part
    " \n",  # blank: not a document
]


@pytest.fixture(scope="module")
def results(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Both programs on one document, and on several."""
    place = tmp_path_factory.mktemp("lm_eval")
    (place / "one.txt").write_bytes("".join(DOCUMENTS).encode())
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    (place / "several.jsonl").write_text("\n".join([*lines, ""]))
    return {
        name: compare(tiny_export, place / name, WINDOW, sys.executable, place) for name in ("one.txt", "several.jsonl")
    }


@pytest.mark.parametrize(("name", "documents"), [("one.txt", 1), ("several.jsonl", 5)])
def test_the_harness_agrees_with_evaluate(results: dict[str, dict[str, Any]], name: str, documents: int) -> None:
    """To rounding by its own conventions; `mu-sota evaluate` itself has the ends of documents, and context, on top."""
    result = results[name]
    assert result["documents"] == documents
    for figure in FIGURES:
        assert result["harness"][figure] == pytest.approx(result["evaluate_as_harness"][figure], rel=1e-5)
    nats = result["nats"]
    assert nats["evaluate"] == pytest.approx(nats["evaluate_as_harness"] + nats["ends"] + nats["context"])
    bits = nats["evaluate"] / (math.log(2) * result["bytes"])
    assert result["evaluate"]["bits_per_byte"] == pytest.approx(bits)


def test_one_document_differs_by_its_end_alone(results: dict[str, dict[str, Any]]) -> None:
    """So the longer a text, the more digits agree: the end is one token more."""
    nats, tokens = results["one.txt"]["nats"], results["one.txt"]["tokens"]
    assert nats["context"] == pytest.approx(0, abs=1e-6 * nats["evaluate"])
    assert abs(nats["ends"]) < 10 * nats["evaluate"] / tokens


def test_the_documented_command_runs(tiny_export: Path, tmp_path: Path) -> None:
    """From the folder of the repository, on a text and a model of one's own; it prints the three figures."""
    (example,) = examples("bash", "lm_eval run")
    command = example.replace("\\\n", " ").splitlines()[-1]
    text = tmp_path / "my_text.txt"
    text.write_text(DOCUMENTS[0])
    command = command.replace("my-model", str(tiny_export)).replace("my_text.txt", str(text))
    command = command.replace("max_length=128", f"max_length={WINDOW}").replace(
        "lm_eval run", f"{sys.executable} -m lm_eval run"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=USING.parents[1],
        env={**environment, "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(figure in done.stdout for figure in FIGURES)
