"""An inspection from end to end: its record, its page, its figures, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, logging

from mu_sota import MuForCausalLM, cli
from mu_sota.common.text import visible
from mu_sota.comparison.baselines import build
from mu_sota.data.corpus import Corpus, load_corpus
from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.inspection.record import inspect_model, labelled_folder, text_map, unlabelled
from mu_sota.inspection.report import page, summary
from mu_sota.inspection.steering import Poles
from mu_sota.inspection.targets import TAUGHT
from mu_sota.inspection.tracing import trace
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError

NAMES = [block.name for block in BLOCKS]
KINDS = ("ADJ", "DET", "NOUN", "VERB")


def quietly(title: str, todo: Any) -> Any:
    return iter(todo)


@pytest.fixture(scope="module")
def corpus(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    cache = tmp_path_factory.mktemp("cache")
    return load_corpus(str(trained[0]), tokenizer=load_tokenizer(trained[1] / "best"), cache_dir=cache)


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Path]) -> MuForCausalLM:
    return MuForCausalLM.from_pretrained(trained[1] / "best").eval()


@pytest.fixture(scope="module")
def record(model: MuForCausalLM, corpus: Corpus) -> dict[str, Any]:
    found = inspect_model(
        model, corpus, unlabelled(corpus), "the state reads", window=32, layer=1, grounded=False, progress=quietly
    )
    about = {"model": "runs/<one>", "data": "texts", "parameters": 1234, "finished": "2026-01-31T12:00:00+00:00"}
    return json.loads(json.dumps(about | found))


def test_every_block_is_ranked_probed_and_compared(record: dict[str, Any]) -> None:
    assert sorted(record["effects"]["ranking"]) == sorted(NAMES)
    assert len(record["effects"]["places"]) == 3, "one layer, the final norm, all"
    assert np.shape(record["similarity"]["cka"]) == (16, 16)
    asked = {task["name"] for task in record["legibility"]["tasks"]}
    assert {"connective", "position"} <= asked
    assert {"part of speech", "word"} <= set(record["not_asked"]), "no labels, and too few of each word"
    assert all(len(task["selectivity"]) == 16 for task in record["legibility"]["tasks"])


def test_the_map_is_that_of_a_trace(model: MuForCausalLM, corpus: Corpus, record: dict[str, Any]) -> None:
    shown = record["map"]
    assert "".join(shown["tokens"]) == "<BOS>the state reads"
    ids = [corpus.tokenizer.bos_token_id, *corpus.tokenizer("the state reads")["input_ids"]]
    traced = trace(model, ids)
    np.testing.assert_allclose(shown["sensitivities"], traced.sensitivities, atol=1e-4)
    np.testing.assert_allclose(shown["log_probs"][1:], traced.log_probs[1:], atol=1e-4)
    blocks = traced.states.unflatten(-1, (16, -1))
    np.testing.assert_allclose(shown["norms"], blocks.square().mean(-1).sqrt(), atol=1e-4)
    place, weight = shown["attended"][0][-1][5][0]
    weights = traced.attention(len(ids) - 1, 1).block[5]
    assert place == weights.argmax()
    assert weight == pytest.approx(float(weights.max()), abs=1e-3)
    assert shown["lens"]["tokens"][-1][-1][0] == corpus.tokenizer.decode([int(traced.top_ids[-1, 0])])


def test_labelled_texts_are_parted_by_name(
    model: MuForCausalLM, corpus: Corpus, treebank: Path, tmp_path: Path
) -> None:
    labelled = labelled_folder(treebank)
    assert labelled.fitted.sum() == 12
    assert len(labelled.documents) == 24
    found = inspect_model(model, corpus, labelled, None, window=32, layer=1, grounded=False, progress=quietly)
    kinds = next(task for task in found["legibility"]["tasks"] if task["name"] == "part of speech")
    assert kinds["classes"] == sorted(KINDS)
    assert kinds["whole_state"]["explained"] > 0.5, "the word says it, and the state knows the word"
    (treebank / "made-up-dev.conllu").unlink()
    with pytest.raises(InputError, match="has not both"):
        labelled_folder(treebank)
    with pytest.raises(InputError, match="has not both"):
        labelled_folder(tmp_path / "none")


def test_another_model_is_cut_into_slices(corpus: Corpus) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(corpus.tokenizer), "n_positions": 32, "n_embd": 32, "n_layer": 2}
    model = build(GPT2Config(**sizes, n_head=2), dropout=0.0).eval()
    found = inspect_model(model, corpus, unlabelled(corpus), None, window=32, layer=1, grounded=False, progress=quietly)
    assert "effects" not in found
    assert "map" not in found
    assert found["legibility"]["legibility"] <= 1
    about = {"model": "gpt2", "data": "texts", "parameters": 1, "finished": "2026-01-31"}
    assert "What the blocks of gpt2 carry" in page(about | found)


class _Page(HTMLParser):
    """Collects the elements that are open, and what loads something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(tag)
        if tag not in ("meta", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_the_record(record: dict[str, Any]) -> None:
    text = page(record)
    parser = _Page()
    parser.feed(text)
    assert not parser.loads
    assert not parser.open
    assert "runs/&lt;one&gt;" in text
    for task in record["legibility"]["tasks"]:
        assert task["question"] in text
    for token in record["map"]["tokens"][1:]:
        assert f"<code>{visible(token)}</code>" in text
    for line in summary(record).splitlines():
        assert line.split(":")[0] in text


def test_the_page_says_what_blocks_were_taught(record: dict[str, Any]) -> None:
    assert "Nothing in the training of this model told its blocks" in page(record)
    taught = {name: teaching._asdict() for name, teaching in TAUGHT.items()}
    text = page(record | {"taught": taught})
    assert f"taught: {TAUGHT['P'].taught} (the same)" in text
    assert "Nothing in the training" not in text


def test_the_summary_says_what_was_found(record: dict[str, Any]) -> None:
    first, alike, needed, missing = summary(record).splitlines()
    count = len(record["legibility"]["best_blocks"])
    assert re.match(rf"Legibility, after layer 1: {count} of 16 blocks", first)
    assert alike.startswith("Most alike: ")
    assert needed.endswith(", ".join(record["effects"]["ranking"][:5]))
    assert "part of speech" in missing


def test_an_empty_text_is_refused(model: MuForCausalLM, corpus: Corpus) -> None:
    with pytest.raises(InputError, match="--text is empty"):
        text_map(model, corpus.tokenizer, [])


@pytest.fixture
def mu_sota(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        verbosity = logging.get_verbosity()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


def test_the_command(trained: tuple[Path, Path], treebank: Path, mu_sota: Callable[..., Any], tmp_path: Path) -> None:
    """`mu-sota inspect RUN --labels FOLDER`, twice."""
    out = tmp_path / "inspected"
    status, printed, _ = mu_sota("inspect", trained[1], "--labels", treebank, "--text", "a block", "--out", out)
    assert status == 0
    assert "blocks are the best at what they are named for" in printed
    assert sorted(path.name for path in out.iterdir()) == ["figures", "index.html", "inspection.json"]
    assert sorted(path.stem for path in (out / "figures").iterdir()) == ["alike", "effect", "legibility"]
    record = json.loads((out / "inspection.json").read_text())
    assert record["machine"]["versions"]
    assert record["window"] == 32
    first = (out / "index.html").read_bytes()
    assert mu_sota("inspect", trained[1], "--labels", treebank, "--text", "a block", "--out", out)[0] == 0
    same = re.sub(rb"\d{4}-\d\d-\d\d", b"", (out / "index.html").read_bytes())
    assert same == re.sub(rb"\d{4}-\d\d-\d\d", b"", first), "the same model gives the same page"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layer", "2"], "--layer is 2, but the model has 1 layers"),
        (["--window", "64"], "--window is 64, but the model has 32 positions"),
        (["--labels", "nowhere"], "--labels is nowhere, which has not both"),
        (["--text", ""], "--text is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    trained: tuple[Path, Path], mu_sota: Callable[..., Any], tmp_path: Path, arguments: list[str], says: str
) -> None:
    status, _, errors = mu_sota("inspect", trained[1], "--out", tmp_path / "out", *arguments)
    assert status == 2
    assert says in errors
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_record_needs_data(
    trained: tuple[Path, Path], mu_sota: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(trained[1] / "best", tmp_path / "alone")
    status, _, errors = mu_sota("inspect", tmp_path / "alone", "--out", tmp_path / "out")
    assert status == 2
    assert "name a text with --data" in errors
    (tmp_path / "file").write_text("")
    status, _, errors = mu_sota("inspect", trained[1], "--out", tmp_path / "file")
    assert "which is a file" in errors


def test_a_block_is_steered_after_an_inspection(
    trained: tuple[Path, Path],
    mu_sota: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any labelled text."""
    kinds = Poles("S", "part of speech", ("NOUN",), ("DET",), ("noun", "determiner"))
    monkeypatch.setattr("mu_sota.inspection.steering.POLES", (kinds,))
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    asked = ("generate", run, "--prompt", "the state", "--temperature", "0", "--max-new-tokens", "12")
    status, _, errors = mu_sota(*asked, "--steer", "P=2")
    assert status == 2
    assert f"first: mu-sota inspect {run}" in errors
    assert mu_sota("inspect", run, "--layer", "0")[0] == 0
    record = json.loads((run / "inspection" / "inspection.json").read_text())
    assert record["steering"]["place"] == 0
    assert [row["block"] for row in record["steering"]["directions"]] == ["S"]
    plain = mu_sota(*asked)[1]
    assert mu_sota(*asked, "--steer", "S=0")[1] == plain
    assert mu_sota(*asked, "--steer", "S=300")[1] != plain
    for wrong, says in (("S", "--steer is 'S'"), ("S=nan", "a strength that is a number"), ("Q=1", "no direction")):
        status, _, errors = mu_sota(*asked, "--steer", wrong)
        assert status == 2
        assert says in errors
