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


def test_every_block_but_x_is_taught(targets: dict[str, Target]) -> None:
    assert set(TAUGHT) == {block.name for block in BLOCKS} - {"X"}
    assert {target.block for target in targets.values()} <= set(TAUGHT) - {"I", "C1"}
    assert "neighbours" not in targets, "too few words to group"
    for target in targets.values():
        assert target.labels.dtype == np.int32
        assert target.labels.max() < max(target.classes, 1)
        assert target.labels.min() >= NONE


def test_a_word_before_is_before() -> None:
    random = np.random.default_rng(0)
    letters = "abcdefghijklmnopqrst"
    words = ["w" + letters[number // 20] + letters[number % 20] for number in random.integers(400, size=6000)]
    made = "the of and " * 200 + " ".join(words)
    tokenizer = train_bpe([made], 700)
    ids = encode(tokenizer, made)
    found = {target.name: target for target in block_targets(ids, tokenizer)}
    labels = found["words before"].labels
    for place in np.flatnonzero(labels != NONE)[::97]:
        assert labels[place] in ids[max(0, place - 48) : place]
    again = {target.name: target for target in block_targets(ids, tokenizer)}
    assert all((again[name].labels == found[name].labels).all() for name in found)
