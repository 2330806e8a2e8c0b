"""What blocks can be taught while a model is trained: cheap labels for every token of a text, each for one block.

They come from the text itself, from counts, and from word lists, never from the labelled texts that blocks are tested
on. `TAUGHT` says what each is.

Legend: T tokens of a text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from .grammar import guess_sentence
from .latent_semantics import passage_directions, quarters, word_directions
from .lexicons import valence
from .tasks import ARGUMENTS, CONNECTIVE_KIND, bucket, head_distance, place_in_sentence
from .word_clusters import word_clusters

NONE = -1

_NEIGHBOUR_GROUPS, _ENDINGS = 32, 200
_WORD_DIRECTIONS = 6
_PASSAGE, _PASSAGE_DIRECTIONS = 1000, 6
_QUARTERS = ["lowest quarter", "second", "third", "highest quarter"]
_RECENT, _COUNTS = 48, (0, 1, 2, 3, 5, 8)  # words
_PERSONS = {"i", "me", "my", "we", "us", "our", "you", "your"}


class Target(NamedTuple):
    """Labels of tokens that one block is taught.

    Attributes:
        block: its name.
        name: of what is taught.
        labels: [T] int16, classes counted from 0, or NONE.
        names: of the classes.
    """

    block: str
    name: str
    labels: np.ndarray
    names: list[str]

    @property
    def classes(self) -> int:
        """Their number."""
        return len(self.names)


class Teaching(NamedTuple):
    """What a block is taught, in words, and how near that is to what it is tested on.

    Attributes:
        taught: in words.
        nearness: `the same` as in the test; `near` to it; or `other labels` than those of the test, by other people or
            from other sources.
        weight: of the block in what teaches all of them.
    """

    taught: str
    nearness: str
    weight: float


_SAME, _NEAR, _OTHER = "the same", "near", "other labels"
TAUGHT = {
    "I": Teaching("the token itself", _SAME, 2),
    "S": Teaching("the part of speech that a word list and the words before give", _OTHER, 3),
    "C1": Teaching("the token before", _SAME, 3),
    "C2": Teaching("where passages of 1,000 tokens stand in the first 6 directions of what they are about", _NEAR, 8),
    "R1": Teaching("the dependency relation, and the distance to the head, that a few rules guess", _OTHER, 3),
    "R2": Teaching("which of 32 groups of words with the same neighbours it is in", _NEAR, 4),
    "T": Teaching("the last three letters", _NEAR, 3),
    "K": Teaching("where words stand in the first 6 directions of what they have to do with", _OTHER, 4),
    "G": Teaching(
        "how many of the last 48 words are I, we or you, signs of questions and exclamations, in the past, or numbers: "
        "what parts registers (Biber 1988)",
        _OTHER,
        8,
    ),
    "M": Teaching("the form of a verb that a word list and the words before give", _OTHER, 1),
    "D": Teaching("the kind of the latest connective of the sentence", _SAME, 4),
    "F": Teaching("the role of an argument that a few rules guess", _OTHER, 5),
    "P": Teaching("the sixteenth of the window, and how many words of its sentence were before it", _SAME, 3),
    "E": Teaching("whether it is a word with a capital letter within a sentence, or follows one", _OTHER, 1),
    "A": Teaching("whether another word list (AFINN) than that of the test has it as positive or negative", _OTHER, 2),
}
"""By block. The weights are as small as leaves each block the best of all at its own test (docs/lab-notes.md)."""


def block_targets(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[Target]:
    """The labels of a text's tokens, but for those that a token's id, the one before and its position are.

    A word's label is at its last token. Of a text too small for a target, that one is left out. It takes about ten
    seconds a million tokens.

    Args:
        tokens: [T] ids.
        tokenizer: that made them.

    Raises:
        InputError: a package of word lists is missing.
    """
    texts = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    numbers, words = token_words(["\n" if token in special else texts[token] for token in tokens.tolist()])
    last = np.append(numbers[1:] != numbers[:-1], True)
    coded = {name: _classes(labels) for name, labels in _labels_of_words(words).items()}
    for number, labels in enumerate(_directions_of_words(words), 1):
        coded["K", f"direction {number}"] = labels, _QUARTERS
    found = [
        Target(block, name, np.where(last, labels[numbers], NONE).astype(np.int16), names)
        for (block, name), (labels, names) in coded.items()
    ]
    passages = passage_directions(tokens, len(tokenizer), _PASSAGE, _PASSAGE_DIRECTIONS)
    for number, direction in enumerate(() if passages is None else passages.T, 1):
        found.append(Target("C2", f"direction {number}", quarters(direction).astype(np.int16), _QUARTERS))
    return [target for target in found if target.classes > 1]


def _classes(labels: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
    """Numbers for labels, in the order of the alphabet, and the names that they stand for."""
    names = sorted({label for label in labels if label})
    numbers = {label: number for number, label in enumerate(names)}
    return np.array([NONE if label is None else numbers[label] for label in labels]), names


def _directions_of_words(words: Sequence[str]) -> list[np.ndarray]:
    """For each direction of word space, which quarter of all words each word is in."""
    known = word_directions(words, _WORD_DIRECTIONS)
    if not known:
        return []
    places = np.array([known.get(word.lower(), np.full(_WORD_DIRECTIONS, np.nan)) for word in words])
    labelled = ~np.isnan(places[:, 0])
    found = np.full(places.shape, NONE)
    for direction in range(_WORD_DIRECTIONS):
        found[labelled, direction] = quarters(places[labelled, direction])
    return list(found.T)


def _sentences(words: Sequence[str]) -> Iterator[list[int]]:
    """The numbers of each sentence's words; white space is none of them."""
    sentence: list[int] = []
    for number, word in enumerate(words):
        if word:
            sentence.append(number)
        if sentence and (not word or word in ".!?"):
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _labels_of_words(words: Sequence[str]) -> dict[tuple[str, str], list[str | None]]:
    """Labels of every word, by block and name of the target."""
    names = [
        *(("S", "part of speech"), ("R1", "relation"), ("R1", "head distance"), ("M", "verb form"), ("F", "role")),
        *(("T", "ending"), ("A", "affect"), ("D", "connective"), ("P", "place in the sentence"), ("E", "capital")),
    ]
    found: dict[tuple[str, str], list[str | None]] = {name: [None] * len(words) for name in names}
    known, affect = Counter(word.lower()[-3:] for word in words if word.isalpha() and len(word) >= 5), valence()
    endings = {ending for ending, _ in known.most_common(_ENDINGS)}
    for sentence in _sentences(words):
        connective, after_capital = "none", False
        for index, (number, guess) in enumerate(
            zip(sentence, guess_sentence([words[number] for number in sentence]), strict=True)
        ):
            low = guess.word.lower()
            connective = CONNECTIVE_KIND.get(low, connective)
            capital = index > 0 and guess.word[:1].isupper() and len(guess.word) > 1
            open_class = guess.coarse in ("NOUN", "VERB", "ADJ", "ADV", "INTJ")
            ending = low[-3:] if guess.word.isalpha() and len(guess.word) >= 5 else None
            labels = (
                guess.coarse,
                guess.relation,
                head_distance(guess.head_offset),
                guess.form,
                guess.relation if guess.relation in ARGUMENTS else None,
                ending if ending in endings else None,
                affect.get(low, "neutral") if open_class else None,
                connective,
                place_in_sentence(index),
                ("inside" if after_capital else "begin") if capital else "none" if index else None,
            )
            for name, label in zip(names, labels, strict=True):
                found[name][number] = label
            after_capital = capital
    for kind, labels_of_words in _register(words, found["M", "verb form"]).items():
        found["G", kind] = labels_of_words
    near = word_clusters([" ".join(words)], _NEIGHBOUR_GROUPS)
    found["R2", "neighbours"] = [near.get(word.lower()) for word in words]
    return found


def _register(words: Sequence[str], forms: Sequence[str | None]) -> dict[str, list[str | None]]:
    """Of each word, about how many of some kinds there are among the latest."""
    kinds = {
        "persons": [word.lower() in _PERSONS for word in words],
        "questions": [word in ("?", "!") for word in words],
        "past": [form in ("past", "past participle") for form in forms],
        "numbers": [any(map(str.isdigit, word)) for word in words],
    }
    counts = {name: np.convolve(found, np.ones(_RECENT, int))[: len(words)] for name, found in kinds.items()}
    return {
        name: [bucket(count, _COUNTS) if word else None for word, count in zip(words, counted.tolist(), strict=True)]
        for name, counted in counts.items()
    }


def token_words(texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The words that tokens make up: the number of each token's word, [T], and the words.

    A word begins at white space, or where letters, digits and other signs meet; each other sign is a word. White space
    alone is a word without letters.
    """
    numbers, words = [], list[str]()
    kind = ""
    for text in texts:
        body = text.strip()
        if not body or text[0].isspace() or _kind(body[0]) != kind or kind == "sign":
            words.append(body)
        else:
            words[-1] += body
        kind = "" if not body or text[-1].isspace() else _kind(body[-1])
        numbers.append(len(words) - 1)
    return np.array(numbers), words


def _kind(character: str) -> str:
    return "letter" if character.isalpha() or character == "'" else "digit" if character.isdigit() else "sign"
