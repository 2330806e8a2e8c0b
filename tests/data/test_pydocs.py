"""Prose that comes with Python."""

import sys
import sysconfig
from pathlib import Path

import pytest
from made_up_text import small, splits, texts

from mu_sota.data import sources
from mu_sota.data.corpus import Corpus, load_corpus
from mu_sota.model.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus("pydocs", vocab_size=1000, cache_dir=tmp_path_factory.mktemp("pydocs"))


def test_pydocs_is_split_by_document_without_shared_prose(pydocs: Corpus) -> None:
    found = texts(pydocs)
    paragraphs = {
        name: {part for text in documents for part in text.rstrip().split("\n\n") if len(part) >= 60}
        for name, documents in found.items()
    }
    assert not paragraphs["train"] & (paragraphs["validation"] | paragraphs["test"])
    assert not paragraphs["validation"] & paragraphs["test"]
    total = sum(split.n_bytes for split in splits(pydocs).values())
    assert 1_500_000 < total < 3_000_000
    for split, share in zip(splits(pydocs).values(), (0.90, 0.05, 0.05), strict=True):
        assert split.n_bytes / total == pytest.approx(share, abs=0.02)


def test_pydocs_holds_the_language_reference_and_docstrings(pydocs: Corpus) -> None:
    everything = "\n".join(text for documents in texts(pydocs).values() for text in documents)
    assert 'The "if" statement is used for conditional execution:' in everything
    assert "Pretty-print a Python object to a stream [default is sys.stdout]." in everything  # pprint.pprint


def test_pydocs_without_its_sources_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match="no sources of the standard library"):
        load_corpus("pydocs")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="no module pydoc_data"):
        load_corpus("pydocs")


def test_pydocs_second_start_does_not_extract(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = {name: [f"Some prose of {name}."] for name in ("train", "validation", "test")}
    monkeypatch.setattr(sources, "read_pydocs", lambda _: documents)
    small("pydocs")
    monkeypatch.setattr(sources, "read_pydocs", None)
    assert texts(small("pydocs")) == documents
