"""What the blocks' names promise, as questions that a linear probe can be asked about a word.

A task gives each word a label, or none where it does not apply. Each says for which block it stands, and what it leaves
out: a name is wider than any question.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .block_states import WordStates
from .labelled_text import Word
from .lexicons import polarity, topics

Labels = list[str | None]

_FREQUENT = 64
"""Words whose identity is asked for: all their classes have enough examples."""


@dataclass(frozen=True)
class Task:
    """A question to ask of every block.

    Attributes:
        name: in figures and records.
        block: whose name promises an answer.
        question: what is to be read off a word's state.
        limits: what the name means beyond it, or what else would answer it.
        label: of every word of the states, or None.
        parted: how the words to fit to are parted from the words to test on: by `files`, or within each document, where
            the document is what is asked for.
    """

    name: str
    block: str
    question: str
    limits: str
    label: Callable[[WordStates], Labels]
    parted: Literal["files", "documents"] = "files"


def _of_word(label: Callable[[Word], str | None]) -> Callable[[WordStates], Labels]:
    return lambda states: [label(word) for word in states.words]


def _frequent(words: Sequence[str]) -> Labels:
    """Each word in small letters if it is one of the most frequent."""
    known = {word for word, _ in Counter(words).most_common(_FREQUENT)}
    return [word if word in known else None for word in words]


def _identity(states: WordStates) -> Labels:
    return _frequent([word.text.lower() for word in states.words])


def _previous_word(states: WordStates) -> Labels:
    """The identity of the word before; none at the beginning of a document."""
    own = _identity(states)
    parted = [one != other for one, other in pairwise(states.numbers)]
    return [None, *(None if new else before for before, new in zip(own, parted, strict=False))]


def bucket(value: int, ends: Iterable[int]) -> str:
    """The largest of `ends` that `value` reaches."""
    return str(max(end for end in ends if value >= end))


def _position(states: WordStates) -> Labels:
    eighth = max(1, states.window // 8)
    return [str(position // eighth) for position in states.positions]


def place_in_sentence(index: int) -> str:
    """Of a word that so many words of its sentence were before."""
    return bucket(index, (0, 1, 2, 3, 4, 6, 8, 11, 15, 20))


def head_distance(offset: int | None) -> str | None:
    """Side and about how many words off a head is; `root` for 0."""
    if not offset:
        return None if offset is None else "root"
    return f"{'before' if offset < 0 else 'after'} {bucket(abs(offset), (1, 2, 3, 5, 9))}"


def _relation(word: Word) -> str | None:
    return word.relation and word.relation.split(":")[0]


ARGUMENTS = {"nsubj", "obj", "iobj", "obl", "nmod", "csubj", "ccomp", "xcomp"}
"""Relations of words that fill a place in a frame."""


def _role(word: Word) -> str | None:
    return word.relation if _relation(word) in ARGUMENTS else None


def _verb_form(word: Word) -> str | None:
    if word.upos not in ("VERB", "AUX"):
        return None
    parts = [word.features[name] for name in ("VerbForm", "Mood", "Tense") if name in word.features]
    return " ".join(parts) or None


_SUFFIXES = (
    "able al an ance ant ary ate ed ence ent er est ful ial ian ible ic ical ing ion ism ist ity ive ize less ly ment "
    "ness or ous ship sion tion ure y"
)
_LONGEST_FIRST = sorted(_SUFFIXES.split(), key=len, reverse=True)
_SHORTEST_STEM = 3


def _suffix(word: Word) -> str | None:
    text = word.text.lower()
    if not text.isalpha() or len(text) < 5:
        return None
    for suffix in _LONGEST_FIRST:
        if text.endswith(suffix) and len(text) - len(suffix) >= _SHORTEST_STEM:
            return suffix
    return "none"


_CONNECTIVES = {
    "addition": "and also moreover furthermore besides additionally",
    "alternative": "or either instead otherwise",
    "cause": "because since so therefore thus hence consequently",
    "condition": "if unless whether provided",
    "contrast": "but however although though yet nevertheless nonetheless despite whereas",
    "time": "when then after before until while once meanwhile afterwards finally",
}
CONNECTIVE_KIND = {word: kind for kind, words in _CONNECTIVES.items() for word in words.split()}
"""What a connective says of the relation of two clauses."""


def _connective(states: WordStates) -> Labels:
    """The kind of the latest connective of the sentence so far, the word itself included."""
    labels: Labels = []
    sentence, kind = None, "none"
    for number, word in zip(states.numbers, states.words, strict=True):
        if (number, word.sentence) != sentence:
            sentence, kind = (number, word.sentence), "none"
        kind = CONNECTIVE_KIND.get(word.text.lower(), kind)
        labels.append(kind)
    return labels


def _affect(states: WordStates) -> Labels:
    """VADER's polarity; of the words that it has not, those of classes that could have one."""
    known = polarity()

    def label(word: Word) -> str | None:
        could = word.upos in ("NOUN", "VERB", "ADJ", "ADV", "INTJ") if word.upos else word.text.isalpha()
        return known.get(word.text.lower(), "neutral") if could else None

    return [label(word) for word in states.words]


def _topic(states: WordStates) -> Labels:
    known = topics()
    return [known.get(word.text.lower()) for word in states.words]


_OUTSIDE = 8
"""One in so many words outside entities is asked: nearly all are outside."""


def _entity(states: WordStates) -> Labels:
    labels: Labels = []
    for number, word in enumerate(states.words):
        if word.entity == "O":
            labels.append(None if number % _OUTSIDE else "none")
        else:
            labels.append(word.entity and word.entity[2:])
    return labels


_LONG = 150
"""Words of a document that can be asked for: shorter ones are many, and each has few to be known by."""


def _document(states: WordStates) -> Labels:
    long = [len(document.words) >= _LONG for document in states.documents]
    return [str(number) if long[number] else None for number in states.numbers]


def _genre(states: WordStates) -> Labels:
    return [states.documents[number].genre for number in states.numbers]


def _neighbours(clusters: dict[str, str]) -> Callable[[WordStates], Labels]:
    return _of_word(lambda word: clusters.get(word.text.lower()))


def all_tasks(clusters: dict[str, str]) -> list[Task]:
    """The tasks, in the order of the blocks. X is free, and has none.

    Args:
        clusters: of words, by their neighbours in a text that the model was trained on; see `word_clusters.py`.
    """
    return [
        Task("word", "I", "which of the 64 most frequent words it is", "rare words are not asked for", _identity),
        Task(
            "part of speech",
            "S",
            "the universal part of speech",
            "most words have one wherever they stand, so their identity tells much of it",
            _of_word(lambda word: word.upos),
        ),
        Task(
            "word before",
            "C1",
            "which of the 64 most frequent words the word before is",
            "context further off is not asked for",
            _previous_word,
        ),
        Task(
            "document",
            "C2",
            "which document it stands in; the probe has seen other parts of them",
            "documents differ in style as well as in what they are about",
            _document,
            parted="documents",
        ),
        Task(
            "relation",
            "R1",
            "the dependency relation to its head",
            "the head may be a word that the model has not read yet",
            _of_word(_relation),
        ),
        Task(
            "head distance",
            "R1",
            "how many words before or after it the head is",
            "as for the relation",
            _of_word(lambda word: head_distance(word.head_offset)),
        ),
        Task(
            "neighbours",
            "R2",
            "which of 16 groups of words with the same neighbours it is in",
            "words with the same neighbours are alike in grammar as well",
            _neighbours(clusters),
        ),
        Task(
            "suffix",
            "T",
            "which suffix it ends in, if any",
            "composition of meaning is more than suffixes",
            _of_word(_suffix),
        ),
        Task(
            "topic of the word",
            "K",
            "the topic that a word list (Empath) has it under",
            "knowing what a word has to do with is the least of knowledge of the world; feelings are block A's",
            _topic,
        ),
        Task(
            "genre",
            "G",
            "whether the text is a weblog, a newsgroup, an email, a review or an answer",
            "coherence itself has no labels; this is what all of a text has in common",
            _genre,
        ),
        Task(
            "verb form",
            "M",
            "form, mood and tense of a verb",
            "certainty is not annotated",
            _of_word(_verb_form),
        ),
        Task(
            "connective",
            "D",
            "the kind of the latest connective of the sentence",
            "relations between sentences that no word marks are not asked for",
            _connective,
        ),
        Task(
            "role",
            "F",
            "the role of an argument: subject, object, oblique, ... by its dependency label",
            "roles by meaning, such as agent and patient, are not annotated",
            _of_word(_role),
        ),
        Task("position", "P", "which eighth of the window it stands in", "", _position),
        Task(
            "place in the sentence",
            "P",
            "how many words of its sentence were before it",
            "",
            _of_word(lambda word: place_in_sentence(word.index)),
        ),
        Task(
            "entity",
            "E",
            "whether it is in the name of a person, a place, a product, ..., or in none",
            "the names are those of short messages on the web",
            _entity,
        ),
        Task(
            "affect",
            "A",
            "whether a word list (VADER) has it as positive, negative, or not at all",
            "the word's, not the writer's: irony and negation are not asked for",
            _affect,
        ),
    ]
