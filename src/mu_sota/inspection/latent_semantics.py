"""What words and passages are about, as directions found by counting.

This is latent semantic analysis (Deerwester et al. 1990, "Indexing by Latent Semantic Analysis"): a table of how often
each word stands in each passage, rare words weighing more, is reduced by singular values. The first directions part
texts into their main fields; later ones are finer.

Legend: T tokens of a text, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds

from .word_clusters import content_words

_PASSAGE_OF_WORDS = 100
_COMMON_TOKENS, _RARE_TOKEN = 150, 20  # the most frequent stand beside everything; rare ones say little of others


def word_directions(words: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """Of the most frequent content words, in small letters: where each stands in the first directions, [count].

    Words stand near each other that stand in the same passages of 100 words. Texts with too few words give none.

    Args:
        words: of a text, in order; those that are not of letters alone are passed over.
    """
    kept = [word.lower() for word in words if word.isalpha()]
    known = content_words(kept)
    places = np.array([(number // _PASSAGE_OF_WORDS, known[word]) for number, word in enumerate(kept) if word in known])
    size = 8 * count
    if min(len(known), len(kept) // _PASSAGE_OF_WORDS) < 2 * size:
        return {}
    of_words = _reduced(_counted(places[:, 0], places[:, 1], len(known)).T, size)
    of_words /= np.maximum(np.linalg.norm(of_words, axis=1, keepdims=True), 1e-12)
    return {word: of_words[number, :count] for word, number in known.items()}


def passage_directions(tokens: np.ndarray, vocab_size: int, length: int, count: int) -> np.ndarray | None:
    """For each token, where its passage stands in the first directions, [T, count]; None if there are too few passages.

    Args:
        tokens: [T] ids.
        vocab_size: V.
        length: of a passage, in tokens.
    """
    frequency = np.bincount(tokens, minlength=vocab_size)
    frequency[np.argsort(-frequency, kind="stable")[:_COMMON_TOKENS]] = 0
    content = np.flatnonzero(frequency > _RARE_TOKEN)
    passages = np.arange(len(tokens)) // length
    if min(len(content), len(tokens) // length) < 4 * count:
        return None
    column = np.full(vocab_size, -1)
    column[content] = np.arange(len(content))
    found = column[tokens] >= 0
    table = _counted(passages[found], column[tokens[found]], len(content), int(passages[-1]) + 1)
    return np.asarray(_reduced(table, count)[passages])


def quarters(values: np.ndarray) -> np.ndarray:
    """Which quarter of all values each one is in, 0 to 3."""
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)


def _counted(passages: np.ndarray, words: np.ndarray, size: int, rows: int | None = None) -> Any:
    """How often each word stands in each passage, weighted: a sparse table."""
    shape = (int(passages.max()) + 1 if rows is None else rows, size)
    table = coo_array((np.ones(len(words)), (passages, words)), shape=shape).tocsr()
    table.data = np.minimum(table.data, 2)  # once more in a passage says little more
    rare = np.log(shape[0] / np.maximum(np.bincount(table.nonzero()[1], minlength=size), 1))
    return table.multiply(rare[None]).tocsr()


def _reduced(table: Any, count: int) -> np.ndarray:
    """The rows in the first directions, the first of them first."""
    rows, values, _ = svds(table, k=count, random_state=0)
    order = np.argsort(-values)
    rows = rows[:, order] * values[order] ** 0.5
    largest = rows[np.abs(rows).argmax(0), np.arange(count)]
    return np.asarray(rows * np.sign(largest))  # the sign of a direction is anybody's choice
