"""Which text goes into which split."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from made_up_text import LINES, small, splits, texts, write_jsonl

pytestmark = pytest.mark.usefixtures("cache")


def test_one_text_is_cut_at_line_ends_without_loss(text_file: Path) -> None:
    corpus = small(text_file)
    pieces = texts(corpus)
    joined = [piece for documents in pieces.values() for piece in documents]
    assert "".join(joined) == LINES
    assert all(piece.endswith("\n") for piece in joined)
    shares = [split.n_bytes / len(LINES) for split in splits(corpus).values()]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_many_documents_are_split_by_document_and_equal_ones_meet(tmp_path: Path, kind: str) -> None:
    documents = [f"Document {i}\r\nwith <EOS> and é.\n" for i in range(400)]
    source = tmp_path / f"corpus.{kind}"
    if kind == "jsonl":
        write_jsonl(source, [*documents, documents[0], " \n"])  # one twice, one blank
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": [*documents, documents[0], ""]}), source)
    else:
        source.mkdir()
        for i, document in enumerate([*documents, documents[0], "\n"]):
            (source / f"{i}.txt").write_bytes(document.encode())
    found = texts(small(source))
    assert sorted(text for part in found.values() for text in part) == sorted([*documents, documents[0]])
    assert not set(found["train"]) & {*found["validation"], *found["test"]}
    assert not set(found["validation"]) & set(found["test"])
    assert len(found["train"]) == pytest.approx(360, abs=20)
    assert len(found["validation"]) == pytest.approx(20, abs=15)


def test_documents_keep_their_split_when_others_come(tmp_path: Path) -> None:
    documents = [f"Document {i}." for i in range(300)]
    before = texts(small(write_jsonl(tmp_path / "a.jsonl", documents)))
    after = texts(small(write_jsonl(tmp_path / "b.jsonl", ["New."] * 3 + documents)))
    for name in before:
        assert set(before[name]) <= set(after[name])
