"""The labels that tasks give to words."""

import sys

import numpy as np
import pytest
import torch

from mu_sota.inspection.block_states import WordStates
from mu_sota.inspection.labelled_text import Document, Word
from mu_sota.inspection.lexicons import refuse_missing, topics
from mu_sota.inspection.tasks import all_tasks
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError

# word, part of speech, relation, head, features
ANNOTATED = [
    ("Luckily", "ADV", "advmod", 2, {}),
    ("cats", "NOUN", "nsubj", 1, {}),
    ("slept", "VERB", "root", 0, {"Mood": "Ind", "Tense": "Past", "VerbForm": "Fin", "Number": "Plur"}),
    ("but", "CCONJ", "cc", 1, {}),
    ("barked", "VERB", "conj:but", -2, {"Tense": "Past", "VerbForm": "Part"}),
    ("ugly", "ADJ", "amod", 1, {}),
    ("dogs", "NOUN", "nsubj:pass", -2, {}),
]


def made_up() -> WordStates:
    """Two documents of the same sentence twice, and a third of two entities."""
    documents = []
    for name in ("reviews-1", "email-2"):
        words = [
            Word(text, 0, 0, sentence, index, upos, features, relation, head)
            for sentence in (0, 1)
            for index, (text, upos, relation, head, features) in enumerate(ANNOTATED)
        ]
        documents.append(Document(name, name.split("-")[0], "", words))
    entities = [Word("York", 0, 0, 0, index, entity=tag) for index, tag in enumerate(("B-location", "I-location", "O"))]
    documents.append(Document("few 0", None, "", entities))
    numbers = np.repeat([0, 1, 2], [len(document.words) for document in documents])
    words = [word for document in documents for word in document.words]
    return WordStates(documents, words, numbers, np.arange(len(words)) % 16, 16, [1], torch.zeros(1, len(words), 16, 1))


def labels(name: str) -> list[str | None]:
    """Of the first sentence."""
    task = next(task for task in all_tasks({"cats": "7"}) if task.name == name)
    return task.label(made_up())[: len(ANNOTATED)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("word", ["luckily", "cats", "slept", "but", "barked", "ugly", "dogs"]),
        ("word before", [None, "luckily", "cats", "slept", "but", "barked", "ugly"]),
        ("part of speech", ["ADV", "NOUN", "VERB", "CCONJ", "VERB", "ADJ", "NOUN"]),
        ("relation", ["advmod", "nsubj", "root", "cc", "conj", "amod", "nsubj"]),
        ("head distance", ["after 2", "after 1", "root", "after 1", "before 2", "after 1", "before 2"]),
        ("role", [None, "nsubj", None, None, None, None, "nsubj:pass"]),
        ("verb form", [None, None, "Fin Ind Past", None, "Part Past", None, None]),
        ("suffix", ["ly", None, "none", None, "ed", None, None]),
        ("connective", ["none", "none", "none", "contrast", "contrast", "contrast", "contrast"]),
        ("neighbours", [None, "7", None, None, None, None, None]),
        ("affect", ["positive", "neutral", "neutral", None, "neutral", "negative", "neutral"]),
        ("genre", ["reviews"] * 7),
        ("position", ["0", "0", "1", "1", "2", "2", "3"]),
        ("place in the sentence", ["0", "1", "2", "3", "4", "4", "6"]),
    ],
)
def test_labels_of_a_sentence(name: str, expected: list[str | None]) -> None:
    assert labels(name) == expected


def test_a_connective_holds_for_its_sentence_and_a_word_before_for_its_document() -> None:
    states = made_up()
    by_name = {task.name: task.label(states) for task in all_tasks({})}
    assert by_name["connective"][len(ANNOTATED)] == "none"
    assert by_name["word before"][len(ANNOTATED)] == "dogs", "across sentences"
    assert by_name["word before"][2 * len(ANNOTATED)] is None, "of another document"
    assert set(by_name["document"]) == {None}, "too short"
    assert by_name["entity"][-3:] == ["location", "location", None]


def test_every_block_but_x_is_asked_something_and_says_what_that_leaves_out() -> None:
    tasks = all_tasks({})
    assert {task.block for task in tasks} == {block.name for block in BLOCKS} - {"X"}
    assert len({task.name for task in tasks}) == len(tasks)
    assert all(task.limits for task in tasks if task.block != "P")


def test_a_missing_word_list_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match="the word list of vaderSentiment is missing: pip install vaderSentiment"):
        labels("affect")
    with pytest.raises(InputError, match="word lists are missing: pip install afinn empath textblob vaderSentiment"):
        refuse_missing()


def test_feelings_are_no_topics() -> None:
    """What block A is named for does not count for block K."""
    assert {"positive_emotion", "fear", "joy"}.isdisjoint(topics().values())
    assert (topics()["doctor"], topics()["army"]) == ("health", "war")
