"""References that need no gradient: word frequencies, and 5-grams with modified Kneser-Ney smoothing."""

import time
from typing import Any

import numpy as np

from mu_sota.evaluation.ngram import KneserNey, unigram

from .inputs import Inputs

ORDER = 5
_STRETCHES = 16  # few, since each seam makes n-grams that are not in the text; many, to meet all kinds of it


def count_references(inputs: Inputs, tokens_read: int) -> dict[str, dict[str, Any]]:
    """Count the reference models and score them on validation and test split; name to record.

    Args:
        tokens_read: by each contender; if the training split has more, one of the n-gram models is counted on as many.
    """
    corpus, vocabulary = inputs.corpus, inputs.config.vocab_size
    splits = {name: getattr(corpus, name) for name in ("validation", "test")}
    references: dict[str, dict[str, Any]] = {
        "unigram": {"label": "unigram model", "entries": vocabulary, "seconds": 0.0}
        | {name: unigram(corpus.train, split, vocabulary).as_dict() for name, split in splits.items()}
    }
    texts = {"kneser-ney": ("", corpus.train.tokens)}
    if tokens_read < corpus.train.n_predicted:
        texts["kneser-ney-seen"] = (", as many tokens", spread_over(corpus.train.tokens, tokens_read))
    for name, (remark, tokens) in texts.items():
        start = time.monotonic()
        ngrams = KneserNey(tokens, vocabulary, ORDER)
        references[name] = {
            "label": f"Kneser-Ney {ORDER}-gram{remark}",
            "entries": ngrams.num_ngrams,
            "seconds": round(time.monotonic() - start, 2),
        } | {split_name: ngrams.score(split).as_dict() for split_name, split in splits.items()}
    return references


def spread_over(tokens: np.ndarray, count: int) -> np.ndarray:
    """`count` tokens of a text and the one before them, in stretches that begin at equal distances."""
    length = -(-count // _STRETCHES)
    starts = np.linspace(0, len(tokens) - length, _STRETCHES).astype(int)
    return np.concatenate([tokens[start : start + length] for start in starts])[: count + 1]
