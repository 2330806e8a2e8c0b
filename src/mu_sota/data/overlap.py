"""Text that stands in two splits, which makes a held-out split easier than it is."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mu_sota.model.errors import InputError

from .options import HELD_OUT
from .survey import Survey

_FEW_LINES = 10  # so few long lines prove nothing


@dataclass(frozen=True)
class Overlap:
    """How much of a split stands in the training split, too: documents, and lines of 100 characters or more."""

    documents: int
    of_documents: int
    lines: int
    of_lines: int


def repeats(found: Survey) -> int:
    """Training documents that are equal to an earlier one."""
    hashes = found.hashes_of("train")
    return len(hashes) - len(np.unique(hashes))


def document_overlap(found: Survey, split: str) -> tuple[int, int]:
    """How many documents of a split stand in the training split, too, and how many it has."""
    hashes = found.hashes_of(split)
    return int(np.isin(hashes, found.hashes_of("train")).sum()), len(hashes)


def line_overlap(lines: np.ndarray, training: Iterable[np.ndarray]) -> int:
    """How many of the hashed lines of a split stand among those of the training split, which come in blocks."""
    held_out, counts = np.unique(lines, return_counts=True)
    seen = np.zeros(len(held_out), bool)
    for block in training:
        seen |= np.isin(held_out, np.unique(block), assume_unique=True)
    return int(counts[seen].sum())


def refuse_equal(source: str, split: str, n_equal: int, n_all: int, what: str) -> None:
    """A split that stands in the training split as a whole says nothing.

    Raises:
        InputError: all of it does.
    """
    if n_all and n_equal == n_all:
        counted = f"{n_all:,} {what}{'s' * (n_all > 1)}"
        raise InputError(
            f"{source}: all of the {split} split ({counted}) stands in the training split, too, so a score on "
            "it says nothing: take it out there, or allow it with --set overlap=allow."
        )


def refuse_equal_documents(source: str, found: Survey) -> None:
    """Refuse a split all of whose documents are training documents.

    Raises:
        InputError: there is one.
    """
    for split in HELD_OUT:
        refuse_equal(source, split, *document_overlap(found, split), "whole document")


def refuse_equal_lines(source: str, split: str, overlap: Overlap) -> None:
    """Refuse a split all of whose long lines are lines of the training text.

    Raises:
        InputError: it is one.
    """
    if overlap.of_lines >= _FEW_LINES:
        refuse_equal(source, split, overlap.lines, overlap.of_lines, "long line")
