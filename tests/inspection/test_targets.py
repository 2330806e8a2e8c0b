"""What blocks are taught: labels of tokens, made from the text alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mu_sota.data.tokenizer import encode, train_bpe
from mu_sota.inspection.targets import NONE, TAUGHT, Target, block_targets, token_words
from mu_sota.model.blocks import BLOCKS

TEXT = "Yesterday Paris was good, but walking there was bad. We stay. "


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe([TEXT * 3], 300)


@pytest.fixture(scope="module")
def targets(tokenizer: PreTrainedTokenizerFast) -> dict[str, Target]:
    return {target.name: target for target in block_targets(encode(tokenizer, TEXT * 20), tokenizer)}


@given(st.lists(st.sampled_from([" a", "b", " 1", "2", ",", " .", "\n", "'s", "  ", "é", " Ü"]), max_size=30))
def test_no_sign_is_lost_and_white_space_ends_a_word(tokens: list[str]) -> None:
    numbers, words = token_words(tokens)
    assert "".join(words) == "".join("".join(tokens).split())
    assert sorted(set(numbers.tolist())) == list(range(len(words)))
    for token, number, before in zip(tokens[1:], numbers[1:], numbers, strict=False):
        assert number - before in (0, 1)
        assert number > before or not token[0].isspace()


def test_words_of_a_sentence() -> None:
    numbers, words = token_words(["Walk", "ing", " 12", "3", "a", "-", "b", ".", "\n", " it", "'s"])
    assert words == ["Walking", "123", "a", "-", "b", ".", "", "it's"]
    assert numbers.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7]


def word_labels(targets: dict[str, Target], name: str, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, int]]:
    """(word, label) of the first two sentences, at the words' last tokens."""
    texts = [str(tokenizer.decode([token])) for token in encode(tokenizer, TEXT)]
    numbers, words = token_words(texts)
    last = np.append(numbers[1:] != numbers[:-1], True)
    labels = targets[name].labels[: len(numbers)]
    assert (labels[~last] == NONE).all(), "a word's label is at its last token"
    return [(words[number], int(label)) for number, label in zip(numbers[last], labels[last], strict=True)]


def test_labels_are_those_of_words(targets: dict[str, Target], tokenizer: PreTrainedTokenizerFast) -> None:
    capital = dict(word_labels(targets, "capital", tokenizer))
    assert capital["Paris"] != capital["was"]
    assert capital["Yesterday"] == NONE, "every sentence begins with a capital"
    affect = dict(word_labels(targets, "affect", tokenizer))
    assert len({affect["good"], affect["bad"], affect["walking"]}) == 3
    connective = [label for _, label in word_labels(targets, "connective", tokenizer)]
    words = [word for word, _ in word_labels(targets, "connective", tokenizer)]
    assert connective[: words.index("but")] == [connective[0]] * words.index("but")
    assert connective[words.index("but")] == connective[words.index("walking")] != connective[0]
    assert connective[words.index("We")] == connective[0], "until the sentence ends"
    speech = dict(word_labels(targets, "part of speech", tokenizer))
    assert speech["good"] == speech["bad"] != speech["was"]


def test_how_a_text_speaks_is_counted_over_its_latest_words(tokenizer: PreTrainedTokenizerFast) -> None:
    quiet, loud = "The dog was there. " * 40, "We walk, you and I! " * 40
    found = block_targets(encode(tokenizer, quiet + loud + quiet), tokenizer)
    register = {target.name: target.labels[target.labels != NONE] for target in found if target.block == "G"}
    third = len(register["persons"]) // 3
    for name, least, most in (("persons", "quiet", "loud"), ("questions", "quiet", "loud"), ("past", "loud", "quiet")):
        means = {
            "quiet": register[name][third - 20 : third - 10].mean(),
            "loud": register[name][2 * third - 20 : 2 * third - 10].mean(),
        }
        assert means[most] > means[least], name
    assert register.keys() == {"persons", "questions", "past"}, "there are no numbers"


def test_every_block_but_x_is_taught(targets: dict[str, Target]) -> None:
    assert set(TAUGHT) == {block.name for block in BLOCKS} - {"X"}
    assert {target.block for target in targets.values()} <= set(TAUGHT) - {"I", "C1"}
    assert "neighbours" not in targets, "too few words to group"
    assert {"C2", "K"}.isdisjoint(target.block for target in targets.values()), "too few passages"
    for target in targets.values():
        assert target.labels.dtype == np.int16
        assert target.labels.max() < max(target.classes, 1)
        assert target.labels.min() >= NONE


def test_passages_and_words_are_parted_by_what_they_are_about() -> None:
    """Of a text on two subjects in turn: K parts their words, C2 the passages, and the same each time."""
    random = np.random.default_rng(0)
    fields = [[f"{letter}{one}{two}" for one in "abcdefghij" for two in "abcdefghijklmn"] for letter in "xy"]
    parts = [" ".join(random.choice([*fields[number % 2], *common()], 3000)) for number in range(30)]
    tokenizer = train_bpe(parts, 900)
    ids = [encode(tokenizer, part) for part in parts]
    found = block_targets(np.concatenate(ids), tokenizer)
    subject = np.repeat(np.arange(len(parts)) % 2, [*map(len, ids)])
    texts = [str(tokenizer.decode([token])).strip() for token in range(len(tokenizer))]
    own = np.array([text[:1] for text in texts])[np.concatenate(ids)]
    for block, of in (("C2", subject), ("K", np.where(own == "x", 0, np.where(own == "y", 1, NONE)))):
        shares = []
        for target in (target for target in found if target.block == block):
            known = (target.labels != NONE) & (of != NONE)
            halves = target.labels[known] >= 2
            shares += [float((halves == of[known]).mean()), float((halves != of[known]).mean())]
        assert max(shares) > 0.95, (block, shares)
    again = block_targets(np.concatenate(ids), tokenizer)
    assert all((one.labels == two.labels).all() for one, two in zip(found, again, strict=True))


def common() -> list[str]:
    """The most frequent words, which say nothing of the subject."""
    return [f"q{one}{two}" for one in "abcdefghij" for two in "abcdefghijklmno"] * 6
