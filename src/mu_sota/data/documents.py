"""A text before it is divided: its parts and their documents."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

ALL = "all"
"""In the place of a split's name: text that names divide in no way."""

Tell = Callable[[str], None]


def with_ends(pieces: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """The pieces of a document, each with whether it is the last."""
    piece = next(pieces)
    for following in pieces:
        yield piece, False
        piece = following
    yield piece, True


@dataclass(frozen=True)
class Source:
    """A text that exists.

    Attributes:
        fingerprint: a list that json can write, and that changes with the text and how it is read.
        parts: for each split, or `ALL`, a function that reads its documents, each as pieces in order. It is given a
            function for remarks.
        n_bytes: on disk; None where that is not known.
        lines: what was taken as what, for people.
    """

    fingerprint: list[object]
    parts: dict[str, Callable[[Tell], Iterator[Iterator[str]]]]
    n_bytes: int | None = None
    lines: list[str] = field(default_factory=list)
