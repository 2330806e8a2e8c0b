"""How text is split into train, validation and test: 90/5/5 %.

At least 100 documents are split by document, fewer by cutting each of them at two ends of lines.
"""

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "validation", "test")

_TRAIN_SHARE, _VALIDATION_SHARE = 0.90, 0.05  # the rest is the test split
_ENOUGH_DOCUMENTS = 100  # below, 5 % of the documents is too coarse a split

Documents = dict[str, list[str]]  # split -> the texts of its documents


def split_documents(documents: list[str]) -> Documents:
    """Split many documents by the hash of their text, so that equal ones meet in one split; cut a few, each in three.

    The cuts are at the first ends of lines after 90 and 95 % of the characters.
    """
    if len(documents) >= _ENOUGH_DOCUMENTS:
        return split_by_hash((document, document) for document in documents)
    splits: Documents = {split: [] for split in SPLITS}
    for document in documents:
        first = _line_end(document, int(len(document) * _TRAIN_SHARE))
        second = _line_end(document, max(first, int(len(document) * (_TRAIN_SHARE + _VALIDATION_SHARE))))
        pieces = (document[:first], document[first:second], document[second:])
        for split, piece in zip(SPLITS, pieces, strict=True):
            if piece:
                splits[split].append(piece)
    return splits


def split_by_hash(documents: Iterable[tuple[str, str]]) -> Documents:
    """Split (key, text) pairs by a hash of the key: a document keeps its split when others come or go."""
    splits: Documents = {split: [] for split in SPLITS}
    for key, text in documents:
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        if share < _TRAIN_SHARE:
            splits["train"].append(text)
        elif share < _TRAIN_SHARE + _VALIDATION_SHARE:
            splits["validation"].append(text)
        else:
            splits["test"].append(text)
    return splits


def _line_end(text: str, position: int) -> int:
    """The first end of a line at or after `position`, or the end of the text."""
    return text.find("\n", position) + 1 or len(text)
