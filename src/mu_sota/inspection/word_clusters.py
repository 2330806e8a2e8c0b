"""Groups of words with the same neighbours, from counts alone.

Positive pointwise mutual information with the words near them (Bullinaria and Levy 2007; Levy, Goldberg and Dagan
2015), reduced by singular values, and k-means.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds

_WORD = re.compile(r"[^\W\d_]+")
_FUNCTION_WORDS = 100  # the most frequent: beside everything, so they say nothing
_WORDS = 4000
_REACH = 3
_DIMENSIONS = 32


def word_clusters(texts: Iterable[str], count: int) -> dict[str, str]:
    """A group, `0` to `count - 1`, of each of the 4,000 most frequent words after the first 100, in small letters.

    The same texts give the same groups; texts with too few words give none.
    """
    words = [word for text in texts for word in _WORD.findall(text.lower())]
    known = content_words(words)
    if len(known) < 4 * max(count, _DIMENSIONS):
        return {}
    ids = np.array([known[word] for word in words if word in known])
    size = len(known)
    counts = coo_array((size, size), dtype=np.float64).tocsr()
    for distance in range(1, _REACH + 1):  # of known words: the others are passed over
        pairs = (ids[:-distance], ids[distance:])
        found = coo_array((np.ones(len(pairs[0])), pairs), shape=(size, size)).tocsr()
        counts = counts + found + found.T
    near = counts.tocoo()
    of_word = np.asarray(counts.sum(1)).ravel()
    contexts = of_word**0.75  # rare neighbours weigh less (Levy, Goldberg and Dagan 2015)
    information = np.log(near.data * contexts.sum() / (of_word[near.row] * contexts[near.col]))
    positive = information > 0
    table = coo_array((information[positive], (near.row[positive], near.col[positive])), shape=(size, size)).tocsr()
    return _grouped(table, known, count)


def content_words(words: Iterable[str]) -> dict[str, int]:
    """A number for each of the 4,000 most frequent words after the first 100."""
    ranked = [word for word, number in Counter(words).most_common(_FUNCTION_WORDS + _WORDS) if number > 1]
    return {word: number for number, word in enumerate(ranked[_FUNCTION_WORDS:])}


def _grouped(table: Any, known: dict[str, int], count: int) -> dict[str, str]:
    """Words with similar rows of a sparse table in groups."""
    vectors, values, _ = svds(table, k=_DIMENSIONS, random_state=0)
    vectors = vectors * values**0.5
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    _, groups = kmeans2(vectors, count, minit="++", seed=0)
    return {word: str(groups[number]) for word, number in known.items()}
