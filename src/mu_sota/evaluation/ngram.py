"""Baselines that count and need no gradient: unigrams, and n-grams with modified Kneser-Ney smoothing."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mu_sota.data.corpus import Split
from mu_sota.model.errors import InputError

from .metrics import Score, score_of

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # those of KenLM's `lmplz --discount_fallback`


class KneserNey:
    """Interpolated n-gram model with modified Kneser-Ney smoothing, estimated from one stream of tokens.

    For a word w after the words h, of which h' are all but the first (Chen & Goodman 1998, "An Empirical Study of
    Smoothing Techniques for Language Modeling", TR-10-98, modified Kneser-Ney):

        p(w | h) = (c(h w) - D(c(h w))) / sum_v c(h v) + gamma(h) p(w | h')
        gamma(h) = sum_v D(c(h v)) / sum_v c(h v),    D(0), D(1), D(2), D(3 and more) = 0, D1, D2, D3
        D1 = 1 - 2 Y n2 / n1,    D2 = 2 - 3 Y n3 / n2,    D3 = 3 - 4 Y n4 / n3,    Y = n1 / (n1 + 2 n2)

    where n1 ... n4 of the n-grams of an order have the count 1 ... 4. The counts c of the highest order are those of
    the text; an n-gram of a lower order counts its distinct left neighbours (Kneser & Ney 1995, "Improved backing-off
    for m-gram language modeling"). After an unseen h, p(w | h) is p(w | h'). The unigrams are interpolated with the
    uniform distribution, so every token of the vocabulary has a positive probability after every context.

    Where n1, n2 or n3 is 0 or a discount is not in (0, 1], (0, 2] or (0, 3], which takes a tiny or artificial text,
    the order's discounts are 0.5, 1 and 1.5.

    Args:
        tokens: ids of shape (tokens,). The first is context only, as in `Split`.
        vocab_size: ids are below it.
        order: length of the longest n-gram; a prediction sees up to order - 1 tokens.

    Raises:
        InputError: `order` is below 1, there are fewer than 2 tokens, or one is not in the vocabulary.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int = 5) -> None:
        if order < 1:
            raise InputError(f"The order of the n-gram model is {order}: give at least 1.")
        self.vocab_size = vocab_size
        tokens = self._checked(tokens)

        # An id numbers the n-grams of an order by prefix, then last word. `ids` are those of the n-grams that start at
        # position 0, 1, ...; `keys`, `suffixes` and `counts` describe the n-grams of each order, by id.
        ids = tokens
        keys, suffixes, counts = [np.arange(vocab_size)], [np.zeros(vocab_size, np.int64)], []
        for length in range(2, min(order, len(tokens)) + 1):
            shorter = ids
            unique, first, ids = np.unique(
                shorter[:-1] * vocab_size + tokens[length - 1 :], return_index=True, return_inverse=True
            )
            keys.append(unique)
            suffixes.append(shorter[first + 1])
            counts.append(np.bincount(suffixes[-1], minlength=len(keys[-2])))
            if length > 2:
                # The start of the stream is a left neighbour, too: no other occurrence may have one. The first token
                # alone was not predicted and does not count.
                counts[-1][shorter[0]] += 1
        # The highest order counts occurrences, also where the stream is too short to have more than its first n-gram.
        counts.append(np.bincount(ids if order > 1 else ids[1:], minlength=len(keys[-1])))

        self._levels: list[_Level] = []
        lower = np.array([1 / vocab_size])
        for level in zip(keys, suffixes, counts, strict=True):
            self._levels.append(_estimate(*level, lower, vocab_size))
            lower = self._levels[-1].probabilities

    @property
    def num_ngrams(self) -> int:
        """Distinct n-grams of all orders that have a probability of their own."""
        return sum(len(level.keys) for level in self._levels)

    def score(self, split: Split) -> Score:
        """Score of the model on a split."""
        nll = -float(self.log_probabilities(split.tokens).sum())
        return score_of(split, nll, int((self.predictions(split.tokens) == split.tokens[1:]).sum()))

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Natural logarithm of the probability of every token but the first after those before it, shape (tokens - 1,).

        The first few tokens have only the context that there is.

        Raises:
            InputError: there are fewer than 2 tokens, or one is not in the vocabulary.
        """
        tokens = self._checked(tokens)
        probabilities = self._levels[0].probabilities[tokens[1:]]
        for level, contexts, ngrams in self._matches(tokens):
            backed_off = level.gammas[contexts] * probabilities
            probabilities = np.where(ngrams >= 0, level.probabilities[ngrams], backed_off)
        return np.log(probabilities)

    def predictions(self, tokens: np.ndarray) -> np.ndarray:
        """The most probable token at every position but the first, shape (tokens - 1,).

        Of equally probable ones, the one seen after the longest context, then the one with the lowest id.

        Raises:
            InputError: there are fewer than 2 tokens, or one is not in the vocabulary.
        """
        tokens = self._checked(tokens)
        best = np.full(len(tokens) - 1, self._levels[0].best[0])
        peaks = np.full(len(tokens) - 1, self._levels[0].peaks[0])
        for level, contexts, _ in self._matches(tokens):
            # Among the words not seen after the context, none beats gamma times the peak of the shorter one. Where the
            # best after the shorter context was seen after the longer one as well, gamma times its peak is only part
            # of its probability there, which the peak of the longer one is not below.
            backed_off = level.gammas[contexts] * peaks
            seen = level.peaks[contexts] >= backed_off
            best = np.where(seen, level.best[contexts], best)
            peaks = np.where(seen, level.peaks[contexts], backed_off)
        return best

    def _matches(self, tokens: np.ndarray) -> Iterator[tuple["_Level", np.ndarray, np.ndarray]]:
        """From bigrams up: a level, and for every token but the first the ids of its context and n-gram, or -1."""
        contexts = tokens[:-1]
        for level in self._levels[1:]:
            keys = contexts * self.vocab_size + tokens[1:]  # below 0, so not found, after an unseen context
            ngrams = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            ngrams[level.keys[ngrams] != keys] = -1
            yield level, contexts, ngrams
            contexts = np.concatenate([[-1], ngrams[:-1]])  # an n-gram is the next token's context

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        if len(tokens) < 2:
            raise InputError(f"The text has {len(tokens)} tokens, and at least 2 are needed to predict one: give more.")
        for token in (int(tokens.min()), int(tokens.max())):
            if not 0 <= token < self.vocab_size:
                raise InputError(
                    f"The text holds the token id {token}, outside the vocabulary of {self.vocab_size}: give the "
                    "vocabulary size of its own tokenizer."
                )
        return tokens.astype(np.int64)


def unigram(train: Split, split: Split, vocab_size: int) -> Score:
    """Score of the unigram baseline on `split`: tokens have their frequency in `train`, with add-one smoothing."""
    counts = np.bincount(train.tokens[1:], minlength=vocab_size) + 1
    targets = split.tokens[1:]
    log_probability = np.log(counts / counts.sum())
    return score_of(split, float(-log_probability[targets].sum()), int((targets == counts.argmax()).sum()))


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order.

    By id, ascending: `keys`, id of the context x vocabulary + last word, and `probabilities` of the last word.

    By id of the context, with that of an unseen context at -1: `gammas`; `peaks`, the highest stored probability, and
    `best`, the word that has it.
    """

    keys: np.ndarray
    probabilities: np.ndarray
    gammas: np.ndarray
    peaks: np.ndarray
    best: np.ndarray


def _estimate(keys: np.ndarray, suffixes: np.ndarray, counts: np.ndarray, lower: np.ndarray, vocab_size: int) -> _Level:
    """A level from its counts and the `lower` level's probabilities, found by the ids `suffixes`."""
    contexts, words = np.divmod(keys, vocab_size)
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    num_contexts = len(lower) + 1  # the last one stands for all that are unseen
    totals = np.bincount(contexts, counts, num_contexts)
    gammas = np.ones(num_contexts)
    np.divide(np.bincount(contexts, discounts, num_contexts), totals, out=gammas, where=totals > 0)
    probabilities = (counts - discounts) / totals[contexts] + gammas[contexts] * lower[suffixes]

    peaks, best = np.zeros(num_contexts), np.zeros(num_contexts, np.int64)
    np.maximum.at(peaks, contexts, probabilities)
    tops = np.flatnonzero(probabilities == peaks[contexts])[::-1]
    best[contexts[tops]] = words[tops]  # the last of equal indices stays: the lowest word
    return _Level(keys, probabilities, gammas, peaks, best)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of the counts 0, 1, 2 and 3 or more."""
    n1, n2, n3, n4 = np.bincount(counts, minlength=5)[1:5].tolist()
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        # At 0, the words never seen after a context could lose all their probability; none exceeds its count.
        if min(estimated) > 0:
            return np.array([0, *estimated])
    return np.array([0, *_FALLBACK_DISCOUNTS])
