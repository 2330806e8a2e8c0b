"""Odd and hostile files in the place of every small file that a command reads: one sentence, or the file does no harm.

Nothing that is in them is run, nothing waits, and no traceback is shown.
"""

import json
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from odd_files import JSON_TEXTS, ODD_VALUES, PLACES, YAML_TEXTS, changed

from mu_sota import cli
from mu_sota.data.corpus import load_corpus, save_corpus

Command = Callable[[Path], list[str | Path]]


@pytest.fixture(autouse=True)
def _library_output_as_before() -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    def too_long(*_: Any) -> None:
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def small(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's record and best model, and the prepared text of the run, without what is large."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(trained[1] / "best", folder / "run" / "best")
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(trained[1] / name, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_SOTA_CACHE", str(folder / "cache"))
        corpus = load_corpus(str(trained[0]), vocab_size=300)
    save_corpus(corpus, folder / "run" / "prepared")
    return folder / "run"


@pytest.fixture
def run(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to be spoiled."""
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(small, tmp_path / "run"))


def outcome(capsys: pytest.CaptureFixture[str], command: list[str | Path]) -> tuple[int, str]:
    """Exit status and sentence; a command that ends otherwise than with 0, or with 2 and one sentence, fails."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in command])
    errors = capsys.readouterr().err
    said = [line for line in errors.splitlines() if line.startswith("mu-sota: ")]
    assert left.value.code in (0, 2), errors
    if left.value.code == 2:
        assert len(said) == 1, errors
        assert len(said[0]) < 1100, errors
    assert "Traceback" not in errors
    assert "\x1b" not in errors
    return left.value.code, "".join(said)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def a_dozen(of: str) -> list[Any]:
    """Some of the odd values, others for each field."""
    return random.Random(of).sample(ODD_VALUES, 12)


def generate(run: Path) -> list[str | Path]:
    return ["generate", run, "--prompt", "the", "--max-new-tokens", "1"]


def steer(run: Path) -> list[str | Path]:
    return [*generate(run), "--steer", "E=1"]


def evaluate(run: Path) -> list[str | Path]:
    return ["evaluate", run, "--split", "test"]


def prepared(run: Path) -> list[str | Path]:
    return ["evaluate", run, "--data", run / "prepared", "--split", "test"]


def export(run: Path) -> list[str | Path]:
    return ["export", run, "--out", run / "exported"]


def inspect(run: Path) -> list[str | Path]:
    return ["inspect", run, "--out", run / "inspected"]


def leakcheck(run: Path) -> list[str | Path]:
    return ["leakcheck", run, "--length", "4", "--time-limit", "0.01"]


def compare(run: Path) -> list[str | Path]:
    return ["compare", "--out", run, "--resume", "--plan"]


READ: list[tuple[str, Command, bool]] = [
    ("best/config.json", generate, True),
    ("best/config.json", inspect, True),
    ("best/config.json", leakcheck, True),
    ("best/generation_config.json", generate, True),
    ("best/tokenizer.json", generate, True),
    ("best/tokenizer_config.json", generate, True),
    ("best/special_tokens_map.json", generate, False),
    ("best/model.safetensors", generate, True),
    ("run.json", evaluate, True),
    ("run.json", inspect, True),
    ("run.json", export, True),
    ("inspection/inspection.json", steer, True),
    ("plan.json", compare, True),
    ("prepared/meta.json", prepared, True),
    ("prepared/mu_sota_tokenizer.json", prepared, True),
    ("prepared/test.npy", prepared, True),
]
"""A file, a command that reads it, and whether every odd content is refused there."""
ids = [f"{file}, {command.__name__}" for file, command, _ in READ]


@pytest.mark.parametrize(("name", "command", "always"), READ, ids=ids)
def test_odd_texts(run: Path, capsys: pytest.CaptureFixture[str], name: str, command: Command, always: bool) -> None:
    file = run / name
    file.parent.mkdir(exist_ok=True)
    for kind, text in JSON_TEXTS.items():
        file.write_bytes(text)
        status, said = outcome(capsys, command(run))
        assert status == 2 or not always, f"{kind} was taken"
        assert status == 0 or str(run) in said, f"of {kind}, it is not said where it is: {said}"


@pytest.mark.parametrize(("name", "command", "always"), READ, ids=ids)
def test_what_is_no_file(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, command: Command, always: bool
) -> None:
    file = run / name
    file.parent.mkdir(exist_ok=True)
    for kind, put in PLACES.items():
        remove(file)
        put(file)
        assert outcome(capsys, command(run))[0] == 2, f"{kind} was taken"


@pytest.mark.parametrize("name", ["metrics.jsonl", "best/model.safetensors.index.json", "best/pytorch_model.bin"])
def test_what_is_no_file_beside_the_model(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for kind in ("a folder", "a pipe", "endless zeros", "a link to itself"):
        remove(run / name)
        PLACES[kind](run / name)
        assert outcome(capsys, export(run))[0] == 2, kind


@pytest.mark.parametrize("kind", YAML_TEXTS)
def test_odd_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(YAML_TEXTS[kind])
    assert outcome(capsys, ["info", "--config", tmp_path / "odd.yaml"])[0] == 2
    assert not Path("odd-file-was-run").exists()


@pytest.mark.parametrize("kind", PLACES)
def test_settings_that_are_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    PLACES[kind](tmp_path / "odd.yaml")
    for command in ("info", "train", "compare"):
        words: list[str | Path] = [command, "--config", tmp_path / "odd.yaml"]
        status, said = outcome(capsys, words if command == "info" else [*words, "--out", tmp_path / "out"])
        assert status == 2
        assert "odd.yaml" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "field",
    [
        *(
            "vocab_size",
            "matrix_size",
            "num_hidden_layers",
            "max_position_embeddings",
            "dropout",
            "block_inputs",
            "dtype",
        ),
        *("model_type", "eos_token_id", "auto_map", "attn_implementation", "quantization_config", "num_labels"),
    ],
)
def test_odd_values_in_a_configuration(run: Path, capsys: pytest.CaptureFixture[str], field: str) -> None:
    """Of any type and size: what no model of this size can have is refused before it is made."""
    file = run / "best" / "config.json"
    content = file.read_text()
    for value in a_dozen(of=field):
        file.write_text(content)
        changed(file, field, value)
        status, _ = outcome(capsys, generate(run))
        assert status == 2 or field not in ("vocab_size", "matrix_size", "model_type"), value


@pytest.mark.parametrize(
    ("name", "field", "command"),
    [
        ("best/generation_config.json", "temperature", generate),
        ("best/generation_config.json", "num_beams", generate),
        ("best/generation_config.json", "eos_token_id", generate),
        ("best/tokenizer_config.json", "eos_token", generate),
        ("best/tokenizer_config.json", "tokenizer_file", generate),
        ("best/tokenizer_config.json", "added_tokens_decoder", generate),
        ("best/tokenizer_config.json", "model_max_length", generate),
        ("run.json", "data", evaluate),
        ("run.json", "settings", evaluate),
        ("run.json", "settings/window", evaluate),
        ("run.json", "settings/text_suffixes", evaluate),
        ("run.json", "machine", export),
        ("run.json", "unigram", export),
    ],
)
def test_odd_values_elsewhere(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, field: str, command: Command
) -> None:
    content = (run / name).read_text()
    for value in a_dozen(of=field):
        (run / name).write_text(content)
        changed(run / name, field, value)
        shutil.rmtree(run / "exported", ignore_errors=True)
        outcome(capsys, command(run))


class _Touches:
    """A pickle that leaves a file when it is run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "config.json", "tokenizer.json"])
def test_a_pickle_is_never_run(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    (run / "best" / "model.safetensors").unlink()
    (run / "best" / name).write_bytes(pickle.dumps(_Touches(tmp_path / "was run")))
    for command in (generate, inspect, export, leakcheck):
        assert outcome(capsys, command(run))[0] in (0, 2)  # to leakcheck, a folder without weights is a configuration
    torch.save({"a": _Touches(tmp_path / "was run")}, run / "best" / name)
    for command in (generate, inspect, export, leakcheck):
        assert outcome(capsys, command(run))[0] in (0, 2)
    assert not (tmp_path / "was run").exists()


def test_a_folders_code_is_never_run(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    best = run / "best"
    (best / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'was run')!r}).touch()\n")
    changed(best / "config.json", "auto_map", {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A"})
    changed(best / "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.A", "evil.A"]})
    changed(best / "generation_config.json", "custom_generate", "evil")
    for command in (generate, export, leakcheck):
        outcome(capsys, command(run))
    assert not (tmp_path / "was run").exists()


def test_a_tokenizer_is_that_of_its_folder(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And not of a file that its configuration names."""
    (tmp_path / "secret").write_text("no tokenizer")
    changed(run / "best" / "tokenizer_config.json", "tokenizer_file", str(tmp_path / "secret"))
    assert outcome(capsys, generate(run))[0] == 0


def test_weights_in_several_files_are_those_of_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names in an index are not followed; one that leads out of the folder is refused."""
    best = run / "best"
    weights = safetensors.torch.load_file(best / "model.safetensors")
    (best / "model.safetensors").unlink()
    for number, names in enumerate((sorted(weights)[:5], sorted(weights)[5:]), start=1):
        part = best / f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({name: weights[name] for name in names}, part, metadata={"format": "pt"})
    index: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (best / "model.safetensors.index.json").write_text(json.dumps(index))
    assert outcome(capsys, generate(run))[0] == 0
    for outside in ("../../etc/passwd", "/etc/passwd", "..", "", None, 3):
        index["weight_map"] = dict.fromkeys(weights, outside)
        (best / "model.safetensors.index.json").write_text(json.dumps(index))
        for command in (generate, leakcheck):
            assert outcome(capsys, command(run))[0] == 2, outside


def test_a_configuration_of_another_size_than_the_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of that size is allocated, and no number of layers is tried one by one."""
    content = (run / "best" / "config.json").read_text()
    for field, value in {"vocab_size": 10**8, "num_hidden_layers": 10_000, "intermediate_size": 10**7}.items():
        (run / "best" / "config.json").write_text(content)
        changed(run / "best" / "config.json", field, value)
        assert "do not fit its config.json" in outcome(capsys, generate(run))[1]


def test_weights_that_are_mostly_holes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of 1 TiB that takes no room on the disk."""
    size = 2**40
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (run / "best" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    status, said = outcome(capsys, generate(run))
    assert status == 2
    assert "do not fit its config.json" in said or "cannot be loaded" in said  # where the system maps no such file


def test_a_tokenizer_of_another_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ids would lie beyond the model's tables."""
    content = json.loads((run / "best" / "tokenizer.json").read_text())
    content["model"]["vocab"]["xyzzy"] = 2**31
    (run / "best" / "tokenizer.json").write_text(json.dumps(content))
    assert "has ids up to 2,147,483,648, but the model has 300" in outcome(capsys, generate(run))[1]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:20])
def test_odd_values_in_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any) -> None:
    fields = ("preset", "data", "questions", "seeds", "budget", "trials", "controls", "overrides")
    for plan in (*({"request": {field: value}} for field in fields), {"request": value}, {"plan": value}):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        words: list[str | Path] = ["compare", "--out", tmp_path, "--resume", "--plan", "--data", os.devnull]
        assert outcome(capsys, words)[0] == 2
