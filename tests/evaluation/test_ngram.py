"""n-gram references: against a slow estimator written from the paper's formulas, over the whole vocabulary."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mu_sota.data.corpus import Split, load_corpus
from mu_sota.evaluation.ngram import KneserNey, unigram
from mu_sota.model.errors import InputError

VOCABULARY = 40


def _split(tokens: Sequence[int]) -> Split:
    return Split(np.array(tokens, np.uint16), n_words=len(tokens) // 2, n_bytes=5 * len(tokens), n_documents=1)


def _random(tokens: int, seed: int = 0) -> list[int]:
    """Tokens of which some are far more frequent than others, as words are."""
    return (np.random.default_rng(seed).geometric(0.2, tokens) % VOCABULARY).tolist()


class Obvious:
    """Modified Kneser-Ney by the formulas of Chen & Goodman (1998): dictionaries, loops and recursion."""

    def __init__(self, tokens: list[int], vocab_size: int, order: int) -> None:
        self.tokens, self.vocab_size, self.order = tokens, vocab_size, order

    @cached_property
    def counts(self) -> dict[int, Counter[tuple[int, ...]]]:
        """For every length, occurrences or distinct left neighbours of each n-gram that ends in a predicted token."""
        counts = {}
        for length in range(1, self.order + 1):
            raw, neighbours = Counter[tuple[int, ...]](), dict[tuple[int, ...], set[int | str]]()
            for end in range(1, len(self.tokens)):
                start = end - length + 1
                if start >= 0:
                    ngram = tuple(self.tokens[start : end + 1])
                    raw[ngram] += 1
                    left = self.tokens[start - 1] if start else "the stream's start"
                    neighbours.setdefault(ngram, set()).add(left)
            continuation = Counter({ngram: len(left) for ngram, left in neighbours.items()})
            counts[length] = raw if length == self.order else continuation
        return counts

    @cached_property
    def discounts(self) -> dict[int, list[float]]:
        """For every length, what is taken from the counts 0, 1, 2, and 3 or more."""
        discounts = {}
        for length, counts in self.counts.items():
            n = Counter(counts.values())
            try:
                y = n[1] / (n[1] + 2 * n[2])
                d = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
                usable = all(0 < d[k] <= k + 1 for k in range(3))
            except ZeroDivisionError:
                usable = False
            discounts[length] = [0, *d] if usable else [0, 0.5, 1, 1.5]
        return discounts

    def probability(self, word: int, context: tuple[int, ...]) -> float:
        length = len(context) + 1
        shorter = self.probability(word, context[1:]) if context else 1 / self.vocab_size
        counts = [self.counts[length][(*context, other)] for other in range(self.vocab_size)]
        if not sum(counts):
            return shorter
        discounts = [self.discounts[length][min(count, 3)] for count in counts]
        gamma = sum(discounts) / sum(counts)
        return (counts[word] - discounts[word]) / sum(counts) + gamma * shorter

    def distributions(self, tokens: list[int]) -> np.ndarray:
        """(tokens - 1, vocabulary): what is said at the place of every token but the first."""
        contexts = [tuple(tokens[max(i - self.order + 1, 0) : i]) for i in range(1, len(tokens))]
        return np.array([[self.probability(w, c) for w in range(self.vocab_size)] for c in contexts])


def _compare(train: list[int], text: list[int], vocab_size: int, order: int) -> None:
    expected = Obvious(train, vocab_size, order).distributions(text)
    model = KneserNey(np.array(train, np.uint16), vocab_size, order)
    tokens = np.array(text, np.uint16)
    places = np.arange(len(text) - 1)
    np.testing.assert_allclose(model.log_probabilities(tokens), np.log(expected[places, text[1:]]), rtol=1e-10)
    # Of words that are equally probable but for rounding, either is right.
    np.testing.assert_allclose(expected[places, model.predictions(tokens)], expected.max(axis=1), rtol=1e-10)


@pytest.mark.parametrize("vocab_size", [6, VOCABULARY])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_formulas(order: int, vocab_size: int) -> None:
    train, other = ([token % vocab_size for token in _random(400, seed)] for seed in range(2))
    _compare(train, other[:60] + train[100:130], vocab_size, order)


def test_streams_of_this_kind_have_discounts_of_their_own() -> None:
    """Else the formulas for discounts would go untested."""
    assert [0, 0.5, 1, 1.5] not in Obvious(_random(400), VOCABULARY, 2).discounts.values()


def test_ids_of_pairs_are_not_cut_to_the_width_of_the_tokens() -> None:
    train = (np.array(_random(200)) * 65_536 // VOCABULARY).astype(np.uint16)
    wide, narrow = (KneserNey(train.astype(kind), 65_536) for kind in (np.int64, np.uint16))
    np.testing.assert_array_equal(narrow.log_probabilities(train), wide.log_probabilities(train.astype(np.int64)))
    np.testing.assert_array_equal(narrow.predictions(train), wide.predictions(train.astype(np.int64)))


@st.composite
def _streams(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    vocab_size = draw(st.integers(2, 5))
    token = st.integers(0, vocab_size - 1)
    train = draw(st.lists(token, min_size=2, max_size=40))
    return train, draw(st.lists(token, min_size=2, max_size=8)), vocab_size, draw(st.integers(1, 5))


@given(_streams())
def test_equals_the_formulas_on_small_streams(case: tuple[list[int], list[int], int, int]) -> None:
    """Small enough for contexts that end the stream, missing counts of counts, and fewer tokens than the order."""
    _compare(*case)


@given(_streams())
def test_probabilities_sum_to_one_after_every_context(case: tuple[list[int], list[int], int, int]) -> None:
    train, text, vocab_size, order = case
    model = KneserNey(np.array(train), vocab_size, order)
    for context in (text, train[:3], train[-3:]):
        last = [model.log_probabilities(np.array([*context, word]))[-1] for word in range(vocab_size)]
        assert np.exp(last).sum() == pytest.approx(1, abs=1e-12)


def test_two_tokens_by_hand() -> None:
    """After 0 came 1, once, so the discounts are 0.5 of a count of 1."""
    after_nothing = [0.5 * 1 / 3, 0.5 + 0.5 * 1 / 3, 0.5 * 1 / 3]
    after_0 = [0.5 * p + 0.5 * (word == 1) for word, p in enumerate(after_nothing)]
    model = KneserNey(np.array([0, 1]), 3)
    for word in range(3):
        assert model.log_probabilities(np.array([0, word])) == pytest.approx(math.log(after_0[word]))
        assert model.log_probabilities(np.array([2, word])) == pytest.approx(math.log(after_nothing[word]))


def test_a_frequent_word_is_predicted_until_a_longer_context_says_more() -> None:
    """Twelve words come after 1, once each and 0 not among them; only four of the twelve come after 2 1."""
    train = [token for word in range(3, 15) for token in (2 if word < 7 else 0, 1, word, 0)]
    text = [1, 0, 2, 1, 0]
    _compare(train, text, 15, order=3)
    predictions = KneserNey(np.array(train), 15, order=3).predictions(np.array(text))
    assert (predictions[0], predictions[-1]) == (0, 3)


def test_of_equals_the_lowest_id_is_predicted() -> None:
    train = np.array([0, 3, 0, 1, 0, 2])
    assert KneserNey(train, 4, order=2).predictions(np.array([0, 0])).tolist() == [1]  # 1, 2 and 3 are alike


def test_a_word_in_one_context_only_is_not_expected_elsewhere() -> None:
    """The example of Chen & Goodman: "Francisco" is frequent, but comes after "San" only."""
    san, francisco, other = 0, 1, 2
    rng = np.random.default_rng(0)
    train = [token for _ in range(200) for token in (san, francisco, *rng.integers(other, VOCABULARY, 2).tolist())]
    tokens = np.array([other, francisco])
    by_contexts, by_frequency = (
        float(np.exp(KneserNey(np.array(train), VOCABULARY, order).log_probabilities(tokens)[0])) for order in (2, 1)
    )
    assert by_frequency > 0.2
    assert by_contexts < 0.02


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "order", "message"),
    [
        ([0, 1], 2, 0, "order of the n-gram model is 0: give at least 1"),
        ([0], 2, 5, "has 1 tokens, and at least 2"),
        ([], 2, 5, "has 0 tokens, and at least 2"),
        ([0, 7, 1], 7, 5, "token id 7, outside the vocabulary of 7"),
        ([0, -1, 1], 7, 5, "token id -1, outside the vocabulary of 7"),
    ],
)
def test_unusable_input_is_refused(tokens: list[int], vocab_size: int, order: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KneserNey(np.array(tokens, np.int64), vocab_size, order)


def test_unusable_text_is_refused() -> None:
    model = KneserNey(np.array([0, 1, 2]), 3)
    for ask in (model.log_probabilities, model.predictions):
        with pytest.raises(InputError, match="token id 3, outside the vocabulary of 3"):
            ask(np.array([0, 3]))
        with pytest.raises(InputError, match="has 1 tokens"):
            ask(np.array([0]))


def test_the_score_counts_every_token_once() -> None:
    train, split = _split(_random(500)), _split(_random(80, seed=2))
    distributions = Obvious(train.tokens.tolist(), VOCABULARY, 3).distributions(split.tokens.tolist())
    score = KneserNey(train.tokens, VOCABULARY, order=3).score(split)
    assert score.nll == pytest.approx(-np.log(distributions[range(79), split.tokens[1:]]).sum())
    assert score.num_correct == (distributions.argmax(axis=1) == split.tokens[1:]).sum()
    assert (score.num_tokens, score.num_words, score.num_bytes) == (79, 40, 400)


def test_unigram_is_add_one_frequencies() -> None:
    train, split = _split(_random(500, seed=1)), _split(_random(80, seed=2))
    counts = dict.fromkeys(range(VOCABULARY), 1)
    for token in train.tokens[1:].tolist():
        counts[token] += 1
    total = sum(counts.values())
    expected = sum(-math.log(counts[token] / total) for token in split.tokens[1:].tolist())
    score = unigram(train, split, VOCABULARY)
    assert score.nll == pytest.approx(expected)
    assert score.num_correct == split.tokens[1:].tolist().count(max(counts, key=lambda token: counts[token]))


def test_wikitext2_is_as_perplexing_as_to_kenlm(wikitext2: Path, tmp_path: Path) -> None:
    """`lmplz -o 5` of KenLM 0.3.0, on the same words and ends of lines as one sentence, gives 217.797."""
    corpus = load_corpus(str(wikitext2), tokenizer="word", cache_dir=tmp_path)
    size = len(corpus.tokenizer)
    perplexities = [KneserNey(corpus.train.tokens, size, order).score(corpus.test).perplexity for order in (5, 3, 2, 1)]
    assert perplexities[0] == pytest.approx(217.797, rel=1e-4)
    assert perplexities == sorted(perplexities)
    assert perplexities[0] < unigram(corpus.train, corpus.test, size).perplexity / 4
