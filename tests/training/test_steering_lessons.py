"""Lessons in steering: what should follow from a move is tilted, and nothing else; a model learns to follow."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from mu_sota import MuForCausalLM
from mu_sota.data.corpus import load_corpus
from mu_sota.data.tokenizer import train_bpe
from mu_sota.inspection.steering import POLES, Direction, steered
from mu_sota.inspection.targets import NONE, Target
from mu_sota.model.blocks import BLOCKS
from mu_sota.settings.load import load_settings
from mu_sota.training.run import train
from mu_sota.training.steering_lessons import _TILTS, SteeringLessons, taught_properties

NAMES = [block.name for block in BLOCKS]
TOKENIZER = train_bpe(["he walked and walks to a good bad London . he was happy , sad ."] * 50, 400)


def lessons() -> SteeringLessons:
    """Of two blocks, P and A, for 8 labelled tokens."""
    places = Target("P", "place in the sentence", np.zeros(8, np.int16), ["0", "1", "15", "2", "20"])
    affect = Target("A", "affect", np.zeros(8, np.int16), ["negative", "neutral", "positive"])
    return SteeringLessons([places, affect], TOKENIZER, block_size=4)


def test_a_block_moves_by_the_difference_of_the_means_of_its_classes_and_no_other_block_moves() -> None:
    taught, blocks = lessons(), torch.randn(2, 4, 16, 4, dtype=torch.float64)
    labels = torch.tensor([[[1, 2], [2, NONE], [4, 0], [0, 1]], [[1, 2], [NONE, 0], [4, 0], [3, 2]]])
    taught.note(blocks, labels)
    for number, block, away, towards in ((0, "P", {1}, {2, 4}), (1, "A", {0}, {2})):
        values = blocks[:, :, NAMES.index(block)]
        column = labels[..., number]
        mean = [values[torch.isin(column, torch.tensor(sorted(classes)))].mean(0) for classes in (away, towards)]
        move = taught.move(number, -1.5)
        torch.testing.assert_close(move[NAMES.index(block)].double(), -1.5 * (mean[1] - mean[0]), rtol=1e-5, atol=1e-6)
        move[NAMES.index(block)] = 0
        assert not move.any()
        assert taught.known(number) == 1


def test_a_block_with_a_class_that_has_not_been_seen_is_not_asked() -> None:
    taught = lessons()
    taught.note(torch.randn(1, 2, 16, 4), torch.tensor([[[1, 0], [2, 1]]]))
    assert taught.known(0) == 1
    assert taught.known(1) == 0, "no positive word"
    for _ in range(200):
        taught.note(torch.randn(1, 2, 16, 4), torch.full((1, 2, 2), NONE))
    assert taught.known(0) == 0, "none of late"


def test_a_text_without_any_of_the_targets_has_no_lessons() -> None:
    taught = SteeringLessons([Target("S", "part of speech", np.zeros(8, np.int16), ["NOUN", "VERB"])], TOKENIZER, 4)
    assert taught.blocks == []
    taught.note(torch.randn(1, 2, 16, 4), torch.zeros(1, 2, 1, dtype=torch.int64))


def test_every_block_has_every_strength_in_turn() -> None:
    taught = lessons()
    turns = [taught.turn(step) for step in range(8)]
    assert set(turns) == {(number, strength) for number in (0, 1) for strength in (2, -2, 1, -1)}


@pytest.mark.parametrize("strength", [2.0, -1.0])
def test_what_is_wanted_is_the_prediction_tilted_by_the_property_and_nothing_else(strength: float) -> None:
    """Tokens alike in the property keep their shares of each other, and odds change by the same factor everywhere."""
    taught = lessons()
    usual = torch.randn(3, len(TOKENIZER), dtype=torch.float64).log_softmax(-1)
    for number in (0, 1):
        wanted = taught.wanted(usual, number, strength)
        torch.testing.assert_close(wanted.exp().sum(-1), torch.ones(3, dtype=torch.float64))
        has = taught.properties[number].double()
        changed = wanted - usual
        for kind in has.unique():
            within = changed[:, has == kind]
            torch.testing.assert_close(within, within[:, :1].expand_as(within))
        odds = changed[:, has == 1].mean(-1) - changed[:, has == 0].mean(-1)
        torch.testing.assert_close(
            odds, torch.full((3,), _TILTS[taught.blocks[number]] * strength, dtype=torch.float64)
        )


def test_properties_are_those_that_the_blocks_stand_for() -> None:
    properties = taught_properties(TOKENIZER)
    ids = TOKENIZER.get_vocab()
    of = {poles.block: row for poles, row in zip(POLES, properties, strict=True)}
    assert of["P"][ids["."]] == 1
    assert of["P"][ids[","]] == 0
    assert of["E"][ids["ĠLondon"]] == 1
    assert of["E"][ids["Ġgood"]] == 0
    assert (of["A"][ids["Ġgood"]], of["A"][ids["Ġbad"]], of["A"][ids["Ġto"]]) == (1, -1, 0)
    assert (of["M"][ids["Ġwalked"]], of["M"][ids["Ġwalks"]], of["M"][ids["Ġgood"]]) == (1, -1, 0)


def write_corpus(folder: Path) -> Path:
    """Sentences of words in any order, which end after any of them, often beyond the twentieth."""
    drawn = random.Random(0)
    words = [
        "a",
        "block",
        "of",
        "state",
        "moves",
        "what",
        "the",
        "token",
        "before",
        "it",
        "has",
        "read",
        "and",
        "keeps",
    ]
    folder.mkdir()
    for name, count in (("train", 12_000), ("valid", 1_500), ("test", 1_500)):
        text = "".join(" " + drawn.choice(words) + " ." * (drawn.random() < 0.06) for _ in range(count))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.usefixtures("cache")
def test_a_model_that_had_lessons_follows_a_moved_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The odds of a sentence's end are higher with P moved forwards than backwards; without lessons, hardly."""
    written = str(write_corpus(tmp_path / "corpus"))
    corpus = load_corpus(written, vocab_size=300)
    ids = torch.from_numpy(corpus.validation.tokens[: 32 * 20].astype(np.int64)).view(-1, 32)
    ends = taught_properties(corpus.tokenizer)[0].bool()
    moved = {}
    for weight in (0.0, 5.0):
        monkeypatch.setattr("mu_sota.training.grounding._LESSONS", weight)
        kept: list[Any] = []
        note = SteeringLessons.note

        def keep(self: SteeringLessons, *arguments: Any, note: Any = note, kept: list[Any] = kept) -> None:
            note(self, *arguments)
            kept[:] = [self.move(0, 1.0)[NAMES.index("P")].tolist()]

        monkeypatch.setattr(SteeringLessons, "note", keep)
        out = tmp_path / str(weight)
        overrides: dict[str, Any] = {**TINY, "trackers": [], "num_hidden_layers": 2, "grounding": 1.0, "num_epochs": 3}
        train("mu-sota", written, out, load_settings("mu-sota", overrides=overrides), resume=False)
        monkeypatch.setattr(SteeringLessons, "note", note)
        model = MuForCausalLM.from_pretrained(out / "best").eval()
        (vector,) = kept
        odds = []
        for strength in (2.0, -2.0):
            with torch.no_grad(), steered(model, 1, [Direction("P", "", "", vector)], {"P": strength}):
                share = F.softmax(model(ids).logits.double(), -1)[..., ends].sum(-1)
            odds.append((share / (1 - share)).log().mean())
        moved[weight] = float(odds[0] - odds[1])
    assert moved[5.0] > moved[0.0] + 1.0
