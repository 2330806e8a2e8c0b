"""What can be refused without PyTorch is refused before it is loaded; the rest says that it loads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
arguments, sys.argv[:] = sys.argv[1:], ["mu-sota"]
from mu_sota.cli import main
try:
    main(arguments)
except SystemExit as end:
    print("status", end.code)
print("loaded", sorted({"torch", "transformers", "numpy", "datasets", "pandas", "matplotlib"} & sys.modules.keys()))
"""


def run(folder: Path, *arguments: str) -> tuple[str, str]:
    """Standard output and error output of a command."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--out", "a-run"], "a-run already holds a run"),
        (["train", "--out", "new", "--preset", "huge"], "no preset is named 'huge'"),
        (["train", "--out", "new", "--set", "batchsize=3"], "did you mean 'batch_size'?"),
        (["train", "--out", "new", "--set", "batch_size=0"], "the setting batch_size is 0"),
        (["train", "--out", "new", "--set", "stride=1000"], "stride is 1000, but must not exceed window"),
        (["train", "--out", "new", "--data", "no-such-text"], "no data named 'no-such-text'"),
        (["train", "--out", "new", "--config", "none.yaml"], "the settings file none.yaml does not exist"),
        (["info", "--preset", "huge"], "no preset is named 'huge'"),
        (["info", "--set", "colour=red"], "there is no setting 'colour'"),
        (["generate", "nowhere", "--prompt", "a"], "there is no folder nowhere"),
        (["generate", "a-run", "--prompt", "a"], "a-run holds no trained model"),
        (["generate", "nowhere"], "give either --prompt"),
        (["generate", "nowhere", "--prompt", "a", "--top-p", "2"], "the setting top_p is 2.0"),
        (["prepare", "--out", "a-run"], "a-run is there already"),
        (["prepare", "--out", "new", "--set", "seed=1"], "--set seed does not change a text's tokens"),
        (["prepare", "--out", "new", "--set", "splits=bytes"], "the setting splits is 'bytes'"),
        (["prepare", "--out", "new", "--data", "no-such-text"], "no data named 'no-such-text'"),
        (["evaluate", "nowhere"], "there is no folder nowhere"),
        (["export", "nowhere", "--out", "new"], "there is no folder nowhere"),
        (["playground", "nowhere"], "there is no folder nowhere"),
        (["compare", "--out", "compared"], "compared already holds a comparison"),
        (["compare", "--plan", "--data", "no-such-text"], "no data named 'no-such-text'"),
        (["compare", "--plan", "--budget", "soon"], "--budget is 'soon'"),
        (["compare", "--plan", "--preset", "huge"], "no preset is named 'huge'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_that_need_no_torch_do_not_load_it(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    for name in ("a-run/run.json", "compared/plan.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    output, errors = run(tmp_path, *arguments)
    assert sentence in errors
    assert "Loading" not in errors
    assert output.splitlines()[-2:] == ["status 2", "loaded []"]


def test_info_says_that_it_loads_and_prints_only_its_page(tmp_path: Path) -> None:
    output, errors = run(tmp_path, "info", "--preset", "quickstart", "--set", "num_hidden_layers=1")
    assert errors.startswith("Loading")
    assert "Loading" not in output
    assert output.startswith("State 8 x 8")


def test_generate_loads_no_file_that_it_does_not_use(tmp_path: Path, trained: tuple[Path, Path]) -> None:
    code = PROGRAM + 'print(*(name for name in sys.modules if name.startswith("mu_sota.")))'
    command = [sys.executable, "-c", code, "generate", str(trained[1]), "--prompt", "the", "--max-new-tokens", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert "mu_sota.generation.continuation" in loaded
    for unused in ("leakcheck.checks", "training.run", "comparison.runner", "playground.page", "evaluation.", "corpus"):
        assert unused not in loaded


def test_generate_samples_as_the_run_did_unless_told_otherwise(tmp_path: Path, trained: tuple[Path, Path]) -> None:
    """At temperature 0 every seed gives the likeliest text."""
    run_folder = tmp_path / "run"
    shutil.copytree(trained[1], run_folder)
    saved = run_folder / "best" / "generation_config.json"
    settings = json.loads(saved.read_text())
    for key in ("temperature", "top_k", "top_p"):
        settings.pop(key)
    saved.write_text(json.dumps(settings | {"do_sample": False}))

    def text(*options: str) -> str:
        return run(tmp_path, "generate", str(run_folder), "--prompt", "the", "--max-new-tokens", "9", *options)[0]

    likeliest = text()
    assert text("--seed", "1") == likeliest
    assert text("--temperature", "5", "--top-p", "1", "--top-k", "0") != likeliest
