"""Treebanks and entity corpora, as their files are written."""

from pathlib import Path

import pytest

from mu_sota.inspection.labelled_text import Document, plain_documents, read_labelled
from mu_sota.model.errors import InputError

# Three sentences, made up; a contraction whose parts are its letters, and one whose parts are not.
TREEBANK = """\
# newdoc id = weblog-one
# sent_id = 1
1\tShe\tshe\tPRON\tPRP\tCase=Nom|Number=Sing\t4\tnsubj\t_\t_
2-3\tdidn't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdid\tdo\tAUX\tVBD\tMood=Ind|Tense=Past|VerbForm=Fin\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
4\tgo\tgo\tVERB\tVB\tVerbForm=Inf\t0\troot\t_\tSpaceAfter=No
5\t.\t.\tPUNCT\t.\t_\t4\tpunct\t_\t_

# sent_id = 2
1\tWe\twe\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2\tdid\tdo\tVERB\tVBD\t_\t0\troot\t_\t_
2.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_

# newdoc id = email-two
# sent_id = 3
1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\t_\t_\t3\tcase\t_\t_
2\tle\tle\tDET\t_\t_\t3\tdet\t_\t_
3\tpain\tpain\tNOUN\t_\t_\t0\troot\t_\t_
"""


def read(tmp_path: Path, name: str, text: str) -> list[Document]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_labelled(tmp_path / name)


def test_a_treebank_is_read_as_it_was_written(tmp_path: Path) -> None:
    one, two = read(tmp_path, "made-up.conllu", TREEBANK)
    assert (one.name, one.genre, one.text) == ("weblog-one", "weblog", "She didn't go. We did")
    assert (two.name, two.genre, two.text) == ("email-two", "email", "du pain")
    assert [one.text[word.start : word.end] for word in one.words] == ["She", "did", "n't", "go", ".", "We", "did"]
    assert [word.text for word in two.words] == ["le", "pain"], "the last part stands for the contraction"
    assert two.text[two.words[0].start : two.words[0].end] == "du"


def test_what_annotators_say_of_a_word(tmp_path: Path) -> None:
    she, did, _, go, *_ = read(tmp_path, "made-up.conllu", TREEBANK)[0].words
    assert (she.upos, she.relation, she.head_offset) == ("PRON", "nsubj", 3)
    assert did.features == {"Mood": "Ind", "Tense": "Past", "VerbForm": "Fin"}
    assert (go.head_offset, go.sentence, go.index, go.entity) == (0, 0, 3, None)


def test_entities_are_of_one_sentence_a_document(tmp_path: Path) -> None:
    documents = read(tmp_path, "few.conll", "visit\tO\nNew\tB-location\nYork\tI-location\n\nok\tO\n")
    assert [document.text for document in documents] == ["visit New York", "ok"]
    assert [word.entity for word in documents[0].words] == ["O", "B-location", "I-location"]
    assert documents[0].genre is documents[0].words[0].upos is None


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "word", "give a .conllu file"),
        ("a.conllu", "1\tword\n", "line 1: a sentence whose words have not the 10 columns"),
        ("a.conllu", "\n\n", "holds no labelled words"),
        ("a.conll", "word\tO\nword O\n", "line 2: 'word O' is no word, tab and BIO tag"),
        ("a.conll", "word\tlocation\n", "is no word, tab and BIO tag"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, name, text)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_labelled(tmp_path / "none.conllu")
    (tmp_path / "latin.conll").write_bytes("caf\u00e9\tO\n".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read"):
        read_labelled(tmp_path / "latin.conll")


def test_a_plain_text_is_cut_into_words_and_pieces() -> None:
    text = "It isn't so.  Is it?\nNo: " + "more words here " * 200
    first, second = plain_documents(text)
    assert [word.text for word in first.words[:9]] == ["It", "isn't", "so", ".", "Is", "it", "?", "No", ":"]
    assert [(word.sentence, word.index) for word in first.words[:6]] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert len(first.words) == 400
    for document in (first, second):
        assert all(document.text[word.start : word.end] == word.text for word in document.words)
        assert document.text == document.text.strip()
    assert plain_documents(" \n") == []


def test_published_corpora(probe_texts: Path) -> None:
    for name in ("ud-ewt-dev.conllu", "ud-ewt-test.conllu", "wnut17-test.conll"):
        for document in read_labelled(probe_texts / name):
            assert all(document.text[word.start : word.end] == word.text for word in document.words)
