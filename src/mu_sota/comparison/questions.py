"""What a comparison can ask, and what is made equal to answer it; tokens, their order and batches always are."""

from typing import Literal, NamedTuple

Question = Literal["params", "flops", "time"]
QUESTIONS: tuple[Question, ...] = ("params", "flops", "time")

Matched = Literal["params", "trunk", "flops", "time"]


class Matching(NamedTuple):
    """A quantity in which a baseline equals MU.

    Attributes:
        question: that it answers.
        title: of a baseline matched in it, after the baseline's label.
        short_title: the same inside a figure.
        quantity: its name.
    """

    question: Question
    title: str
    short_title: str
    quantity: str


MATCHINGS: dict[Matched, Matching] = {
    "params": Matching("params", "same total parameters", "same total", "total parameters"),
    # In files, non-embedding parameters are called "trunk" or "outside".
    "trunk": Matching("params", "same non-embedding parameters", "same non-emb.", "non-embedding parameters"),
    "flops": Matching("flops", "same FLOPs", "same FLOPs", "FLOPs a token"),
    "time": Matching("time", "same time", "same time", "seconds a step"),
}
NON_EMBEDDING = "without token and position embeddings, MU's tables and the output projection"
"""The definition of non-embedding parameters, for people."""


def matchings_of(question: Question) -> list[Matched]:
    """The quantities that are made equal to answer a question, each in a baseline of its own."""
    return [matched for matched, matching in MATCHINGS.items() if matching.question == question]
