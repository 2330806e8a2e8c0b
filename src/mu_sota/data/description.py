"""What there is to say of a corpus: what was taken as what, what stands in it twice, and what is too small."""

import math

from .corpus import Corpus
from .options import HELD_OUT

_SPREAD = 6.0  # nats: measured over the text of a small model, see docs/data.md
_LARGE_ERROR = 0.05  # of perplexity


def perplexity_error(n_tokens: int) -> float:
    """The standard error of a perplexity over so many tokens, as a share of it.

    The loss of a token spreads by about 3 nats; since tokens of a passage are alike in difficulty, the mean of n by
    6 nats over the root of n.
    """
    return math.expm1(_SPREAD / math.sqrt(n_tokens))


def describe(corpus: Corpus) -> list[str]:
    """Lines for people, none where there is nothing to say."""
    lines = list(corpus.about.get("lines", []))
    if repeats := corpus.about.get("repeats"):
        lines.append(f"{repeats:,} training documents are equal to earlier ones.")
    for split in HELD_OUT:
        overlap = corpus.about.get("overlap", {}).get(split)
        if overlap and (overlap["documents"] or overlap["lines"]):
            lines.append(
                f"Of {split}, {overlap['documents']:,} of {overlap['of_documents']:,} documents and "
                f"{overlap['lines']:,} of {overlap['of_lines']:,} long lines stand in the training text, too."
            )
        if (error := perplexity_error(getattr(corpus, split).n_predicted)) > _LARGE_ERROR:
            lines.append(
                f"The {split} split is small ({getattr(corpus, split).n_predicted:,} tokens): its perplexity is known "
                f"to about {error:.0%}."
            )
    return lines
