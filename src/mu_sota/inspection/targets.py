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
from .lexicons import valence
from .tasks import ARGUMENTS, CONNECTIVE_KIND, head_distance, place_in_sentence
from .word_clusters import passage_clusters, word_clusters

NONE = -1

_NEIGHBOUR_GROUPS, _TOPICS, _ENDINGS = 32, 64, 200
_PAST, _FUTURE = 48, 64


class Target(NamedTuple):
    """Labels of tokens that one block is taught.

    Attributes:
        block: its name.
        name: of what is taught.
        labels: [T] int32, classes counted from 0, or NONE.
        classes: their number.
    """

    block: str
    name: str
    labels: np.ndarray
    classes: int


class Teaching(NamedTuple):
    """What a block is taught, in words, and how near that is to what it is tested on.

    Attributes:
        taught: in words.
        nearness: `the same` as in the test; `near` to it; or `other labels` than those of the test, by other people or
            from other sources.
    """

    taught: str
    nearness: str


_SAME, _NEAR, _OTHER = "the same", "near", "other labels"
TAUGHT = {
    "I": Teaching("the token itself", _SAME),
    "S": Teaching("the part of speech that a word list and the words before give", _OTHER),
    "C1": Teaching("the token before", _SAME),
    "C2": Teaching("a token out of the last 48", _OTHER),
    "R1": Teaching("the dependency relation, and the distance to the head, that a few rules guess", _OTHER),
    "R2": Teaching("which of 32 groups of words with the same neighbours it is in", _NEAR),
    "T": Teaching("the last three letters", _NEAR),
    "K": Teaching("which of 64 groups of words from the same passages it is in", _OTHER),
    "G": Teaching("the group of neighbours of a word out of the next 64 tokens", _OTHER),
    "M": Teaching("the form of a verb that a word list and the words before give", _OTHER),
    "D": Teaching("the kind of the latest connective of the sentence", _SAME),
    "F": Teaching("the role of an argument that a few rules guess", _OTHER),
    "P": Teaching("the sixteenth of the window, and how many words of its sentence were before it", _SAME),
    "E": Teaching("whether it is a word with a capital letter within a sentence, or follows one", _OTHER),
    "A": Teaching("whether another word list (AFINN) than that of the test has it as positive or negative", _OTHER),
}
"""By block."""


def block_targets(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> list[Target]:
    """The labels of a text's tokens, but for those that a token's id, the one before and its position are.

    A word's label is at its last token. Of a text too small for a target, that one is left out. It takes about ten
    seconds a million tokens.

    Args:
        tokens: [T] ids.
        tokenizer: that made them.
        seed: of the tokens drawn for C2 and G.

    Raises:
        InputError: a package of word lists is missing.
    """
    texts = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    numbers, words = token_words(["\n" if token in special else texts[token] for token in tokens.tolist()])
    last = np.append(numbers[1:] != numbers[:-1], True)
    by_word = _labels_of_words(words)

    def at_last_token(labels: Sequence[str | None]) -> tuple[np.ndarray, int]:
        classes = {label: number for number, label in enumerate(sorted({label for label in labels if label}))}
        coded = np.array([NONE if label is None else classes[label] for label in labels], np.int32)
        return np.where(last, coded[numbers], NONE).astype(np.int32), len(classes)

    found = [Target(block, name, *at_last_token(labels)) for (block, name), labels in by_word.items()]
    groups = next(target for target in found if target.block == "R2")
    random = np.random.default_rng(seed)
    content = groups.labels >= 0
    later, earlier = (_drawn(content, random, *reach) for reach in ((1, _FUTURE), (-_PAST, 0)))
    ids = tokens.astype(np.int32)
    found.append(Target("G", "words to come", np.where(later >= 0, groups.labels[later], NONE), groups.classes))
    found.append(Target("C2", "words before", np.where(earlier >= 0, ids[earlier], NONE), len(tokenizer)))
    return [target for target in found if target.classes > 1 and (target.labels != NONE).any()]


def _drawn(wanted: np.ndarray, random: np.random.Generator, low: int, high: int) -> np.ndarray:
    """[T], for each token the place of a wanted one from `low` to below `high` places on, drawn at random, or NONE."""
    count = len(wanted)
    places = np.full(count, NONE, np.int64)
    for _ in range(12):  # of all tokens, about one in five is wanted
        tried = np.arange(count) + random.integers(low, high, size=count)
        usable = (places == NONE) & (tried >= 0) & (tried < count)
        usable[usable] = wanted[tried[usable]]
        places[usable] = tried[usable]
    return places


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
    near = word_clusters([" ".join(words)], _NEIGHBOUR_GROUPS)
    passages = passage_clusters([" ".join(words)], _TOPICS)
    found["R2", "neighbours"] = [near.get(word.lower()) for word in words]
    found["K", "passages"] = [passages.get(word.lower()) for word in words]
    return found


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
