"""Which part of a text is trained on, and which is held out."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mu_sota.data.documents import Source
from mu_sota.data.options import HELD_OUT, SPLITS
from mu_sota.data.splits import best_cut, divide
from mu_sota.data.survey import divided_pieces, survey

PIECE = 5_000


def source_of(**parts: list[str]) -> Source:
    """Documents by the name of their split, or `all`; each in pieces."""

    def pieces(text: str) -> Iterator[str]:
        return (text[start : start + PIECE] for start in range(0, len(text), PIECE))

    def reader(documents: list[str]) -> object:
        return lambda _: (pieces(text) for text in documents)

    return Source([], {name: reader(documents) for name, documents in parts.items()})  # type: ignore[misc]


def divided(parts: dict[str, list[str]], text_bytes: int | None = None) -> dict[str, list[str]]:
    """The documents of every split, as they come out."""
    source = source_of(**parts)
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    begun: dict[str, str] = {}
    for split, piece, ends in divided_pieces(source, survey(source, text_bytes, lambda _: None), text_bytes):
        assert piece
        begun[split] = begun.get(split, "") + piece
        if ends:
            found[split].append(begun.pop(split))
    assert not begun
    return found


def documents(count: int, sizes: tuple[int, ...] = (40, 3000)) -> list[str]:
    """Different documents of lines, of different sizes."""
    return [f"Document {i}.\n" * (sizes[i % len(sizes)] // 12) for i in range(count)]


def test_named_splits_are_as_they_are() -> None:
    given_ = {"train": ["a b", "c\n"], "validation": ["d"], "test": ["e", "f"]}
    assert divided(given_) == given_


def test_many_documents_stay_whole_and_are_divided_by_bytes() -> None:
    texts = documents(4000)
    found = divided({"all": texts})
    assert sorted(text for split in found.values() for text in split) == sorted(texts)
    total = sum(map(len, texts))
    for split in HELD_OUT:
        assert sum(map(len, found[split])) / total == pytest.approx(0.05, abs=0.012)


def test_what_comes_later_moves_nothing() -> None:
    """Nor a document that grows the text beyond any number of documents."""
    texts = [*documents(300), "A long one has many lines.\n" * 8000]
    before = divided({"all": texts})
    after = divided({"all": [*documents(3), *texts, *[f"Later {i}.\n" * 500 for i in range(300)]]})
    for split in SPLITS:
        assert set(before[split]) <= set(after[split])


def test_equal_documents_meet_in_one_split() -> None:
    found = divided({"all": documents(500) * 2})
    assert all(len(texts) == 2 * len(set(texts)) for texts in found.values())


def test_a_long_document_is_cut_at_lines_near_its_end() -> None:
    """So one file is enough; and its size does not decide which split gets it."""
    text = "".join(f"This is the line {i} of many.\n" for i in range(20_000))
    found = divided({"all": [text]})
    assert "".join(piece for split in SPLITS for piece in found[split]) == text
    assert all(len(pieces) == 1 and pieces[0].endswith("\n") for pieces in found.values())
    assert [len(found[split][0]) / len(text) for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=1e-3)


@pytest.mark.parametrize(
    ("unit", "last"),
    [
        ("One sentence follows another, without an end. ", " "),
        ("Words without any point ", " "),
        ("一句话，没有空格。", "。"),
        ("ACGTTGCA", "ACGT"),
    ],
    ids=["sentences", "words", "Chinese", "DNA"],
)
def test_a_single_line_is_cut_where_it_hurts_least(unit: str, last: str) -> None:
    text = unit * (3_000_000 // len(unit.encode()))
    found = divided({"all": [text]})
    assert "".join(piece for split in SPLITS for piece in found[split]) == text
    assert found["train"][0][-1] in last
    sizes = [len(found[split][0].encode()) / len(text.encode()) for split in SPLITS]
    assert sizes == pytest.approx([0.9, 0.05, 0.05], abs=0.012)


def test_few_documents_are_all_cut() -> None:
    texts = ["".join(f"Line {i} of {name}.\n" for i in range(100)) for name in "abc"]
    found = divided({"all": texts})
    for number, text in enumerate(texts):
        assert "".join(found[split][number] for split in SPLITS) == text
    assert divided({"all": ["".join(texts)] * 30})["test"]  # so are many that are equal


@pytest.mark.parametrize("missing", [["validation"], ["test"], ["validation", "test"]])
def test_a_split_without_a_name_is_taken_from_the_training_text(missing: list[str]) -> None:
    given_ = {split: documents(2000) if split == "train" else [split] for split in SPLITS if split not in missing}
    found = divided(given_)
    for split in SPLITS:
        if split in given_ and split != "train":
            assert found[split] == given_[split]
    total = sum(map(len, given_["train"]))
    for split in missing:
        assert sum(map(len, found[split])) / total == pytest.approx(0.05, abs=0.015)
    assert sum(len(found[split]) for split in ("train", *missing)) == 2000


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=30), st.booleans())
def test_no_character_is_lost_or_doubled(texts: list[str], long: bool) -> None:
    texts = [text * (70_000 // len(text)) if long and number == 0 else text for number, text in enumerate(texts)]
    found = divided({"all": texts})
    assert sum(len(piece) for split in found.values() for piece in split) == sum(map(len, texts))


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**20)), min_size=1),
    st.sets(st.sampled_from(HELD_OUT)),
)
def test_every_document_has_a_place_that_exists(rows: list[tuple[int, int]], held_out: set[str]) -> None:
    hashes, sizes = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    division = divide(hashes, sizes.astype(np.int64), tuple(split for split in HELD_OUT if split in held_out))
    assert set(division.places.tolist()) <= {-1, 0, *map(SPLITS.index, held_out)}
    ends = [end for _, end in division.cuts(1000)]
    assert ends[-1] == 1000
    assert all(before < after for before, after in pairwise(ends))


def test_the_most_of_a_text_is_a_limit_of_its_training_part() -> None:
    found = divided({"train": documents(1000), "validation": documents(9), "test": ["x"]}, 10_000)
    assert 10_000 <= sum(map(len, found["train"])) < 14_000
    assert len(found["validation"]) == 9


def test_the_hash_of_a_document_is_that_of_its_bytes_however_it_is_read() -> None:
    text = "Ünïcödé 💡 " * 5000
    known = survey(source_of(all=[text]), None, lambda _: None)
    assert known.hashes["all"].tolist() == [xxhash.xxh3_64_intdigest(text.encode())]
    assert known.n_bytes["all"].tolist() == [len(text.encode())]


@given(st.text(st.sampled_from("ab .\n")), st.integers(0, 50), st.integers(1, 20))
def test_a_cut_is_within_reach(text: str, position: int, reach: int) -> None:
    position = min(position, len(text))
    assert position <= best_cut(text, position, reach) <= position + reach
