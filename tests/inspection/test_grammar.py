"""Guesses of part of speech, verb form and relation, on made-up sentences, and how often they are right."""

from pathlib import Path

import pytest

from mu_sota.inspection.grammar import guess_sentence
from mu_sota.inspection.labelled_text import read_labelled


def test_a_sentence() -> None:
    guesses = guess_sentence(["The", "old", "man", "has", "given", "a", "book", "to", "him", "."])
    said = {name: [getattr(guess, name) for guess in guesses] for name in ("coarse", "relation", "form")}
    assert " ".join(said["coarse"]) == "DET ADJ NOUN AUX VERB DET NOUN ADP PRON PUNCT"
    assert " ".join(said["relation"]) == "det amod nsubj aux root det obj case nmod punct"
    assert said["form"][3:5] == ["third person", "past participle"]
    assert [guess.head_offset for guess in guesses] == [2, 1, 2, 1, 0, 1, -2, 1, -2, 0]


@pytest.mark.parametrize(
    ("sentence", "word", "coarse", "form"),
    [
        ("She walked home", "walked", "VERB", "past"),
        ("She will walk home", "walk", "VERB", "bare"),
        ("They want to play", "play", "VERB", "bare"),
        ("The play ended", "play", "NOUN", None),
        ("It is raining", "raining", "VERB", "participle in -ing"),
        ("We could stay", "could", "AUX", "modal"),
        ("Zorbland fell", "Zorbland", "PROPN", None),
        ("I saw 14 of them", "14", "NUM", None),
        ("He grobbled it", "grobbled", "VERB", "past"),
        ("Stay because it rains", "because", "SCONJ", None),
    ],
)
def test_words_in_their_places(sentence: str, word: str, coarse: str, form: str | None) -> None:
    (guess,) = (guess for guess in guess_sentence(sentence.split()) if guess.word == word)
    assert (guess.coarse, guess.form) == (coarse, form)


@pytest.mark.parametrize(
    ("sentence", "relations"),
    [
        ("Cats sleep", "nsubj root"),
        ("The sky is blue .", "det nsubj cop root punct"),
        ("He is a doctor", "nsubj cop det root"),
        ("John Smith likes tea and coffee", "compound flat root obj cc conj"),
        ("They went to Paris in May", "nsubj root case obl case nmod"),
        ("If he comes , we leave", "mark nsubj advcl punct nsubj advcl"),
    ],
)
def test_relations(sentence: str, relations: str) -> None:
    assert " ".join(guess.relation for guess in guess_sentence(sentence.split())) == relations


def test_no_words_are_no_guesses() -> None:
    assert guess_sentence([]) == []


def test_guesses_are_right_more_often_than_not(probe_texts: Path) -> None:
    right, count = {"coarse": 0, "relation": 0, "head_offset": 0}, 0
    for document in read_labelled(probe_texts / "ud-ewt-dev.conllu")[:60]:
        for number in {word.sentence for word in document.words}:
            words = [word for word in document.words if word.sentence == number]
            for word, guess in zip(words, guess_sentence([word.text for word in words]), strict=True):
                count += 1
                right["coarse"] += guess.coarse == word.upos
                right["relation"] += guess.relation == str(word.relation).split(":")[0]
                right["head_offset"] += guess.head_offset == word.head_offset
    assert right["coarse"] / count > 0.8
    assert right["relation"] / count > 0.6
    assert right["head_offset"] / count > 0.4
