"""A first reading of a text: how many documents, how long, which of them are equal, and which split each goes to."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from .documents import ALL, Source, with_ends
from .options import HELD_OUT, SPLITS
from .splits import Division, best_cut, divide

Tick = Callable[[int], object]
"""Told how many bytes of text were read since the last time."""


@dataclass(frozen=True)
class Survey:
    """What is known of a text after it was read once.

    Attributes:
        hashes: for each part of the source, of every document: uint64 of shape (documents,).
        n_bytes: the same in bytes of UTF-8.
        divided: the part that is divided, if there is one: `ALL`, or `train` where names leave out a split.
        division: of that part.
        remarks: of the readers.
    """

    hashes: dict[str, np.ndarray]
    n_bytes: dict[str, np.ndarray]
    divided: str | None
    division: Division | None
    remarks: list[str]

    @property
    def total_bytes(self) -> int:
        """Of all documents."""
        return sum(int(sizes.sum()) for sizes in self.n_bytes.values())

    def hashes_of(self, split: str) -> np.ndarray:
        """Of the documents that go to a split as a whole."""
        hashes = self.hashes.get(split, np.empty(0, np.uint64))
        if self.division is None or self.divided is None:
            return hashes
        divided = self.hashes[self.divided][self.division.places == SPLITS.index(split)]
        return divided if self.divided == split else np.concatenate([hashes, divided])


def survey(source: Source, text_bytes: int | None, tick: Tick) -> Survey:
    """Read all documents of a source, and decide where they go.

    Args:
        source: to read.
        text_bytes: the most of `ALL` or `train`; the document that exceeds it is the last.
        tick: told about progress.

    Raises:
        InputError: a file cannot be read.
    """
    hashes: dict[str, np.ndarray] = {}
    sizes: dict[str, np.ndarray] = {}
    remarks: list[str] = []
    for part in source.parts:
        hashed, sized = array("Q"), array("q")  # of rows there may be many millions
        for document in documents_of(source, part, text_bytes, remarks.append):
            running, size = xxhash.xxh3_64(), 0
            for piece in document:
                encoded = piece.encode()
                running.update(encoded)
                size += len(encoded)
                tick(len(encoded))
            hashed.append(running.intdigest())
            sized.append(size)
        hashes[part], sizes[part] = np.array(hashed, np.uint64), np.array(sized, np.int64)
    divided = next((part for part in (ALL, "train") if part in hashes), None)
    held_out = tuple(split for split in HELD_OUT if split not in hashes)
    division = divide(hashes[divided], sizes[divided], held_out) if divided and held_out else None
    return Survey(hashes, sizes, divided if division else None, division, remarks)


def documents_of(
    source: Source, part: str, text_bytes: int | None, tell: Callable[[str], None]
) -> Iterator[Iterator[str]]:
    """The documents of a part of a source, up to the most bytes of training text."""
    left = text_bytes if part in (ALL, "train") else None
    for document in source.parts[part](tell):
        if left is None:
            yield document
            continue
        if left <= 0:
            return
        read = 0

        def counted(pieces: Iterator[str] = document) -> Iterator[str]:
            nonlocal read
            for piece in pieces:
                read += len(piece.encode())
                yield piece

        yield counted()
        left -= read


def divided_pieces(source: Source, found: Survey, text_bytes: int | None) -> Iterator[tuple[str, str, bool]]:
    """All the text again, as (split, piece, whether a document ends with it); a document never ends with no piece."""
    for part in source.parts:
        documents = documents_of(source, part, text_bytes, lambda _: None)
        for number, document in enumerate(documents):
            split = part
            if found.division is not None and part == found.divided:
                place = int(found.division.places[number])
                if place == -1:
                    cuts = found.division.cuts(int(found.n_bytes[part][number]))
                    yield from _cut(document, cuts)
                    continue
                split = SPLITS[place]
            yield from ((split, piece, ends) for piece, ends in with_ends(document))


def _cut(document: Iterator[str], cuts: list[tuple[str, float]]) -> Iterator[tuple[str, str, bool]]:
    """A document cut near the bytes at which its splits end; a split that gets nothing is left out."""
    total = cuts[-1][1]
    reach = max(int(total / 100), 200)
    read = place = 0  # bytes before what is left of the piece; the place of the present split among the cuts
    held = ""  # of the present split, until it is known whether more of it follows
    for piece in document:
        rest = piece
        while rest:
            split, end = cuts[place]
            encoded = rest.encode()
            if place == len(cuts) - 1 or read + len(encoded) <= end:
                if held:
                    yield split, held, False
                held = rest
                read += len(encoded)
                break
            start = len(encoded[: max(int(end) - read, 0)].decode(errors="ignore"))
            cut = best_cut(rest, start, reach)
            head, rest = rest[:cut], rest[cut:]
            if held and head:
                yield split, held, False
            held = head or held
            read += len(head.encode())
            if held:
                yield split, held, True
            held, place = "", place + 1
    if held:
        yield cuts[place][0], held, True
