"""How text is split into train, validation and test: 90/5/5 %, by document or, with few documents, at line ends."""

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "validation", "test")

_TRAIN_SHARE, _VALIDATION_SHARE = 0.90, 0.05  # the rest is the test split
_ENOUGH_DOCUMENTS = 100  # below, 5 % of the documents is too coarse a split

Documents = dict[str, list[str]]  # split -> the texts of its documents


def split_documents(documents: list[str]) -> Documents:
    """Whole documents by the hash of their text, so that equal ones meet in one split; a few documents are cut."""
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


def _line_end(text: str, position: int) -> int:
    """The first end of a line at or after `position`, or the end of the text."""
    return text.find("\n", position) + 1 or len(text)


def split_by_hash(documents: Iterable[tuple[str, str]]) -> Documents:
    """Split (key, text) pairs by a hash of the key, which stays when other documents come or go."""
    splits: Documents = {split: [] for split in SPLITS}
    for key, text in documents:
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        split = "train" if share < _TRAIN_SHARE else "test"
        if _TRAIN_SHARE <= share < _TRAIN_SHARE + _VALIDATION_SHARE:
            split = "validation"
        splits[split].append(text)
    return splits
