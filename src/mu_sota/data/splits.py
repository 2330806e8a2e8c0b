"""Which part of a text is trained on, and which is held out.

Names decide where they say splits. What they leave open is decided by the text itself, 5 % of its bytes for validation
and 5 % for test: a document of less than 64 KiB goes to one split by its hash, a longer one is cut, its end held out.
So files that come later move nothing that is there. Only where this leaves a split empty, every document is cut.
"""

import re
from dataclasses import dataclass

import numpy as np

from .options import SPLITS

_SHARE = 0.05  # of validation, and of test
_CUT_FROM = 2**16  # bytes; so long a document tells by its beginning what its end is like, and would outweigh many

_LINE_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*\s+|[。！？]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Division:
    """Where the documents of a text without all its splits go.

    Attributes:
        places: for every document its place in `SPLITS`; -1 for one that is cut.
        held_out: the splits that are taken out of the text.
        cut_all: True if every document is cut.
    """

    places: np.ndarray
    held_out: tuple[str, ...]
    cut_all: bool

    def cuts(self, n_bytes: int) -> list[tuple[str, float]]:
        """For a document that is cut: its splits in order, each with the byte at which it ends."""
        ends = [n_bytes * (1 - _SHARE * left) for left in range(len(self.held_out), -1, -1)]
        return list(zip(("train", *self.held_out), ends, strict=True))


def divide(hashes: np.ndarray, n_bytes: np.ndarray, held_out: tuple[str, ...]) -> Division:
    """Divide documents, given by uint64 hashes of their text and their sizes, both of shape (documents,)."""
    shares, first = hashes / 2.0**64, 1 - _SHARE * len(held_out)
    places = np.zeros(len(hashes), np.int8)
    for number, split in enumerate(held_out):
        places[shares >= first + number * _SHARE] = SPLITS.index(split)
    places[n_bytes >= _CUT_FROM] = -1
    wanted = {0, *map(SPLITS.index, held_out)}
    cut_all = not (places == -1).any() and set(places.tolist()) != wanted
    if cut_all:
        places[:] = -1
    return Division(places, held_out, cut_all)


def best_cut(text: str, position: int, reach: int) -> int:
    """Where to cut from `position` on, within `reach` characters.

    At an end of line, else of a sentence, else after white space; where there is none of them, at `position` itself.
    """
    for ending in (_LINE_END, _SENTENCE_END, _SPACE):
        if found := ending.search(text, position, position + reach):
            return found.end()
    return position
