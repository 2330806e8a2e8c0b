"""An exported folder: loads without the package, says what the run's record says, and is whole or absent."""

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from reference import small_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mu_sota import InputError, MuForCausalLM
from mu_sota.data.tokenizer import train_words
from mu_sota.model import modeling
from mu_sota.saved import export as module
from mu_sota.saved import model_card
from mu_sota.saved.export import export_model
from mu_sota.saved.load_save import load_trained

TEXT = "the <EOS>\t\n é 🙂"
STRANGER = """
import json, sys
sys.modules["mu_sota"] = None  # any import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

folder, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer(text, return_tensors="pt")
greedy = {"do_sample": False, "max_new_tokens": 8}
generate = pipeline("text-generation", model=folder, trust_remote_code=True)
torch.manual_seed(0)
print(json.dumps({
    "class": type(model).__module__,
    "ids": ids.input_ids[0].tolist(),
    "back": tokenizer.decode(ids.input_ids[0]),
    "logits": model(**ids).logits[0, -1].tolist(),
    "greedy": model.generate(**ids, **greedy)[0].tolist(),
    "uncached": model.generate(**ids, **greedy, use_cache=False)[0].tolist(),
    "pipeline": generate(text, **greedy)[0]["generated_text"],
    "several": [made[0]["generated_text"] for made in generate(["the", "a block of"], batch_size=2)],
    "nothing": generate("")[0]["generated_text"],
}))
"""


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "tiny-mu"
    export_model(trained[1], out)
    return out


def test_it_loads_in_a_python_that_has_no_mu_sota(exported: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    """A fresh virtual environment with the libraries alone: the same model, tokenizer, text; pipelines work."""
    venv.create(tmp_path / "plain", with_pip=False)
    place = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "plain")})
    # A line in a .pth file brings the libraries, and not what their own .pth files bring, as an editable install.
    (Path(place) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "plain" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = subprocess.run(
        [python, "-c", STRANGER, exported, TEXT],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["class"].startswith("transformers_modules.")

    model, tokenizer = load_trained(trained[1])
    ids = tokenizer(TEXT, return_tensors="pt")
    assert found["ids"] == ids.input_ids[0].tolist()
    assert found["back"] == TEXT
    torch.testing.assert_close(torch.tensor(found["logits"]), model(**ids).logits[0, -1])
    made = model.generate(**ids, do_sample=False, max_new_tokens=8, repetition_penalty=1.2)
    assert found["greedy"] == found["uncached"] == made[0].tolist()
    assert found["pipeline"] == tokenizer.decode(made[0], skip_special_tokens=True)
    assert [text.startswith(start) for text, start in zip(found["several"], ("the", "a block of"), strict=True)]
    assert found["nothing"]


def test_with_the_package_nobody_is_asked_to_trust(exported: Path, trained: tuple[Path, Path]) -> None:
    """The installed class is used, and gives what the run's own folder gives."""
    model: Any = AutoModelForCausalLM.from_pretrained(exported)
    assert type(model) is MuForCausalLM
    ours, _ = load_trained(trained[1])
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())
    again, tokenizer = load_trained(exported)
    assert again.config.max_position_embeddings == tokenizer.model_max_length == 32


def test_the_folder_holds_what_it_needs_and_no_more(exported: Path) -> None:
    """Every sibling that the code imports, and nothing else of the package."""
    code = {path.stem for path in exported.glob("*.py")}
    imported = {
        node.module
        for path in exported.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    names = {path.stem for path in Path(str(modeling.__file__)).parent.glob("*.py")} - {"__init__"}
    assert code == imported | {"modeling"} == names
    others = {path.name for path in exported.iterdir()} - {f"{name}.py" for name in code}
    assert others == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not list(exported.parent.glob(".*"))


def test_generation_starts_from_the_settings_of_the_run(exported: Path) -> None:
    config = GenerationConfig.from_pretrained(exported)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.8, 50, 0.9)
    assert config.repetition_penalty == 1.2
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)


def test_a_conversation_is_joined_text(exported: Path) -> None:
    """The model knows no speakers; `<EOS>` in a message stays text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    talk = [{"role": "user", "content": "the <EOS> state"}, {"role": "assistant", "content": "of a block"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "the <EOS> state\nof a block"
    ids = tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
    assert not set(ids) & {0, 1, 2, 3}
    assert tokenizer.decode(ids) == "the <EOS> state\nof a block"


# --- The card -------------------------------------------------------------------------------------------------------


def test_the_card_tells_the_figures_of_the_record(exported: Path, trained: tuple[Path, Path]) -> None:
    record = json.loads((trained[1] / "run.json").read_text())
    best, floor = record["result"]["best"]["validation"], record["unigram"]
    card = ModelCard.load(exported / "README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {name: round(best[name], 4) for name in ("perplexity", "word_perplexity", "bits_per_byte")}
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert f"| loss, nats per token | {best['loss']:.4f} | {floor['loss']:.4f} |" in card.text
    assert f"{best['num_tokens']:,} tokens" in card.text
    assert "no leak was found by 11 checks: future, batch," in card.text
    assert "seed 0" in card.text
    for sample in record["result"]["best"]["samples"]:
        assert json.dumps(sample["text"], ensure_ascii=False) in card.text
    assert "matrix of 8 × 8 values" in card.text
    assert str(trained[0].parent) not in card.content  # the folder of the data is nobody's business
    assert "- data: corpus (" in card.text


def test_the_card_of_a_model_without_record_makes_nothing_up(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """A folder in Hugging Face layout alone; of the word vocabulary, which says so."""
    model = small_model(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    tokenizer = train_words([" ".join(f"w{number}" for number in range(35)) + "\n"])
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    settings = tmp_path / "plain" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "right"}))
    export_model(tmp_path / "plain", tmp_path / "words")
    assert AutoTokenizer.from_pretrained(tmp_path / "words").padding_side == "left"
    card = ModelCard.load(tmp_path / "words" / "README.md")
    assert "There is no record of how this model was trained." in card.text
    assert card.data.eval_results is None
    assert "words of a closed vocabulary" in card.text
    assert "validation" not in card.text


def test_an_unfinished_run_is_exported_with_its_best_epoch(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The figures are those of the epoch whose weights `best/` holds, whatever the run does later."""
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    record = json.loads((run / "run.json").read_text())
    del record["result"]
    (run / "run.json").write_text(json.dumps(record))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    worse = dict(rows[-1], epoch=2, validation={**rows[-1]["validation"], "loss": 99.0})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(worse) + "\n" + '{"kind": "epo')
    for number, folder in enumerate((run, run / "best")):
        export_model(folder, tmp_path / f"out{number}")
        card = ModelCard.load(tmp_path / f"out{number}" / "README.md")
        assert "## Figures of epoch 1, the best by validation loss" in card.text


@pytest.mark.parametrize(
    ("data", "shown"),
    [("pydocs", "pydocs"), ("/home/ann/my texts/", "texts of the author's own"), ("/home/ann/poems.txt", "poems.txt")],
)
def test_paths_of_data_stay_private(data: str, shown: str) -> None:
    assert model_card._data_name({"data": data}) == shown


# --- What cannot be exported -----------------------------------------------------------------------------------------


def test_nothing_is_overwritten_and_nothing_half_written(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there is there already; give --out a new folder"):
        export_model(trained[1], tmp_path / "there")
    with pytest.raises(InputError, match="there is no folder"):
        export_model(tmp_path / "none", tmp_path / "out")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for there in (tmp_path / "dangling", tmp_path / "nosuch" / ".." / "there", tmp_path / "there" / ".."):
        with pytest.raises(InputError, match="is there already"):
            export_model(trained[1], there)
    (tmp_path / "dangling").unlink()
    with pytest.raises(InputError, match="no line ends or control characters"):
        export_model(trained[1], tmp_path / "two\nlines")

    def fails(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "model_card", fails)
    with pytest.raises(OSError, match="the disk is full"):
        export_model(trained[1], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_record_of_another_kind_is_said(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Damaged, or of a version that wrote other things: named, and nothing written."""
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    record = json.loads((run / "run.json").read_text())
    record["settings"]["temperature"] = 1e-9
    for text in ('{"half', "[1]", json.dumps({"preset": "mu-sota"}), json.dumps(record)):
        (run / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json"):
            export_model(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 0.5, "top_k": 7}, {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.9}),
        ({"temperature": 0}, {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}),
    ],
)
def test_the_sampling_of_the_run_is_that_of_the_folder(
    trained: tuple[Path, Path], tmp_path: Path, sampling: dict[str, float], expected: dict[str, Any]
) -> None:
    """And the figures that are no numbers are left out of the card's front matter."""
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    record = json.loads((run / "run.json").read_text())
    record["settings"] |= sampling
    (run / "run.json").write_text(json.dumps(record))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["validation"]["word_perplexity"] = float("inf")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    export_model(run, tmp_path / "mine")
    config = GenerationConfig.from_pretrained(tmp_path / "mine")
    assert {name: getattr(config, name) for name in expected} == expected
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert [result.metric_type for result in card.data.eval_results] == ["perplexity", "bits_per_byte"]


def test_the_best_model_of_a_run_samples_as_the_run_did(trained: tuple[Path, Path]) -> None:
    """`best/` itself, which users load; and others may read its weights as they may its configuration."""
    config = GenerationConfig.from_pretrained(trained[1] / "best")
    assert (config.do_sample, config.temperature, config.top_k) == (True, 0.8, 50)
    modes = {(trained[1] / "best" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_what_is_published_says_its_licence_and_nothing_of_this_machine(exported: Path) -> None:
    for file in exported.glob("*.py"):
        assert "Apache License, Version 2.0" in file.read_text().splitlines()[0]
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert not settings.keys() & {"is_local", "local_files_only", "name_or_path"}
    card = (exported / "README.md").read_text()
    assert "under the Apache License 2.0" in card
