"""Parts of speech, verb forms and relations of words, guessed by a word list and the words around them.

Cheap labels to teach blocks with, of any English text, right more often than not: how often, `docs/blocks.md` says.
They were made without a treebank; blocks are tested against labels by people.
"""

from collections.abc import Sequence
from typing import NamedTuple

from .lexicons import tags

_COARSE = {
    **dict.fromkeys(("NN", "NNS"), "NOUN"),
    **dict.fromkeys(("NNP", "NNPS"), "PROPN"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "ADJ"),
    **dict.fromkeys(("RB", "RBR", "RBS"), "ADV"),
    **dict.fromkeys(("IN", "RP"), "ADP"),
    **dict.fromkeys(("TO", "POS"), "PART"),
    **dict.fromkeys(("DT", "PDT"), "DET"),
    **dict.fromkeys(("PRP", "WP", "WDT", "EX"), "PRON"),
    **dict.fromkeys(("PRP$", "WP$"), "POSS"),
    **dict.fromkeys(("VB", "VBD", "VBG", "VBN", "VBP", "VBZ"), "VERB"),
    "CC": "CCONJ",
    "CD": "NUM",
    "MD": "AUX",
    "UH": "INTJ",
    "WRB": "SCONJ",
}
_BE = frozenset(("be", "is", "are", "was", "were", "been", "being", "am", "'s", "'re", "'m"))
_MODALS = frozenset(("will", "would", "can", "could", "may", "might", "shall", "should", "must"))
_HAVE_AND_BE = "have has had having be is are was were been being".split()  # noqa: SIM905
_AUXILIARIES = _MODALS.union(_HAVE_AND_BE, ("am", "'s", "'re", "'m", "do", "does", "did"))
_SUBORDINATING = frozenset(
    "that because since if unless whether although though while when where as before after until".split()  # noqa: SIM905
)
_BEFORE_PARTICIPLES = {*_HAVE_AND_BE, "by"}
_BEFORE_INFINITIVES = _MODALS.union(("to", "do", "does", "did", "n't", "not"))
_NOMINAL = ("NOUN", "PROPN", "PRON")


class Guess(NamedTuple):
    """What a word is taken for.

    Attributes:
        word: as written.
        coarse: part of speech, much as in Universal Dependencies; `POSS` is a possessive.
        form: of a verb, or None.
        relation: to its head, as in Universal Dependencies.
        head_offset: words from it to its head; 0 for the root, or where the guess fails.
    """

    word: str
    coarse: str
    form: str | None
    relation: str
    head_offset: int


def guess_sentence(words: Sequence[str]) -> list[Guess]:
    """Guess for every word of a sentence, signs included.

    Raises:
        InputError: the word list is not installed.
    """
    known = tags()
    fine = [_tag(word, known) for word in words]
    coarse = [_coarse(word, tag) for word, tag in zip(words, fine, strict=True)]
    for at in range(1, len(words)):  # what the word before makes of one that could be noun or verb
        before = words[at - 1].lower()
        if coarse[at] == "VERB" and coarse[at - 1] in ("DET", "POSS", "ADJ") and fine[at] in ("VB", "VBP", "VBZ"):
            coarse[at] = "NOUN"
        elif coarse[at] == "NOUN" and (before == "to" or before in _MODALS):
            coarse[at], fine[at] = "VERB", "VB"
    for at, word in enumerate(words[:-1]):
        if word.lower() == "to" and coarse[at + 1] not in ("VERB", "AUX", "ADV"):
            coarse[at] = "ADP"
    forms = [_form(at, words, coarse, fine) for at in range(len(words))]
    relations = _relations(words, coarse)
    return [Guess(*parts[:3], *parts[3]) for parts in zip(words, coarse, forms, relations, strict=True)]


def _tag(word: str, known: dict[str, str]) -> str:
    """The tag of the Penn Treebank."""
    if tag := known.get(word) or known.get(word.lower()):
        return tag
    if word[:1].isdigit():
        return "CD"
    if not word[:1].isalpha():
        return "."
    if word[:1].isupper():
        return "NNP"
    endings = {"ing": "VBG", "ed": "VBD", "ly": "RB", "s": "NNS"}
    return next((tag for ending, tag in endings.items() if word.endswith(ending)), "NN")


def _coarse(word: str, tag: str) -> str:
    low = word.lower()
    coarse = _COARSE.get(tag, "X" if word[:1].isalnum() else "PUNCT")
    if low in _AUXILIARIES and coarse != "PROPN":  # not the month of May
        return "AUX"
    return "SCONJ" if low in _SUBORDINATING and coarse in ("ADP", "ADV", "DET") else coarse


def _form(at: int, words: Sequence[str], coarse: Sequence[str], fine: Sequence[str]) -> str | None:
    word, tag = words[at].lower(), fine[at]
    if coarse[at] not in ("VERB", "AUX"):
        return None
    if word in _MODALS:
        return "modal"
    if tag == "VBG" or word.endswith("ing"):
        return "participle in -ing"
    before = [other.lower() for other in words[max(0, at - 3) : at]]
    if tag in ("VBN", "VBD") or word in ("was", "were", "had", "did", "been"):
        return "past participle" if word == "been" or _BEFORE_PARTICIPLES & set(before) else "past"
    if at == 0 or before[-1] in _BEFORE_INFINITIVES:
        return "bare"
    return "third person" if tag == "VBZ" or word in ("is", "has", "does") else "present"


def _next(coarse: Sequence[str], at: int, kinds: Sequence[str], reach: int) -> int:
    """Words to the next of some kinds, or 0 where none is near."""
    return next((step for step in range(1, reach + 1) if at + step < len(coarse) and coarse[at + step] in kinds), 0)


def _relations(words: Sequence[str], coarse: Sequence[str]) -> list[tuple[str, int]]:
    """Relation and head offset of every word, read from left to right with the nearest noun and verb in mind."""
    found = []
    noun = verb = -1  # the latest of the sentence so far
    preposition = conjunction = mark = copula = False
    for at, kind in enumerate(coarse):
        after = coarse[at + 1] if at + 1 < len(coarse) else "PUNCT"
        relation, offset = _OF_KIND.get(kind, ("dep", (), 0))[0], 0
        if kind in _OF_KIND:
            offset = _next(coarse, at, *_OF_KIND[kind][1:])
        if kind == "PUNCT":
            preposition = False
        elif kind == "AUX" and words[at].lower() in _BE and not _next(coarse, at, ("VERB",), 3):
            relation, copula = "cop", verb < 0
        elif kind == "ADP":
            preposition = True
        elif kind == "CCONJ":
            conjunction = True
        elif kind in ("SCONJ", "PART"):
            mark = True
            if words[at] == "'s":
                relation, offset = "case", noun - at if noun >= 0 else 0
        elif kind == "ADJ" and after not in ("NOUN", "PROPN", "ADJ"):
            relation, offset = ("root", 0) if verb < 0 else ("xcomp", verb - at)
            verb, copula = (at, False) if copula else (verb, copula)
        elif kind == "ADV" and not offset:
            offset = verb - at if verb >= 0 else 0
        elif kind in _NOMINAL:
            if kind != "PRON" and after in ("NOUN", "PROPN"):
                relation, offset = "compound", 1
            elif kind == "PROPN" and at and coarse[at - 1] == "PROPN":
                relation, offset = "flat", noun - at if noun >= 0 else 0
            else:
                relation, offset = _nominal(at, coarse, noun, verb, preposition, conjunction)
                if copula and not preposition:
                    relation, offset, copula, verb = "root", 0, False, at
                preposition = conjunction = False
                noun = at
        elif kind == "VERB":
            relation, offset = _clause(at, words, verb, mark, conjunction)
            verb, mark, conjunction = at, False, False
        found.append((relation, offset))
    return found


# Relation, kinds of head, and how far off it can be, of words whose head follows.
_OF_KIND: dict[str, tuple[str, tuple[str, ...], int]] = {
    "PUNCT": ("punct", (), 0),
    "DET": ("det", ("NOUN", "PROPN"), 6),
    "POSS": ("nmod", ("NOUN", "PROPN"), 6),
    "ADP": ("case", _NOMINAL, 6),
    "ADJ": ("amod", ("NOUN", "PROPN"), 6),
    "ADV": ("advmod", ("VERB", "ADJ", "AUX"), 3),
    "AUX": ("aux", ("VERB", "ADJ", "NOUN"), 4),
    "CCONJ": ("cc", ("NOUN", "VERB", "PROPN", "ADJ"), 5),
    "SCONJ": ("mark", ("VERB",), 5),
    "PART": ("mark", ("VERB",), 5),
    "NUM": ("nummod", ("NOUN", "PROPN"), 3),
}


def _nominal(
    at: int, coarse: Sequence[str], noun: int, verb: int, preposition: bool, conjunction: bool
) -> tuple[str, int]:
    """Of the head of a noun phrase."""
    follows = _next(coarse, at, ("VERB", "AUX"), 8)
    if preposition:
        head = max(noun, verb)
        return ("nmod" if noun > verb else "obl"), (head - at if head >= 0 else 0)
    if conjunction and follows != 1:
        return "conj", noun - at if noun >= 0 else 0
    if verb < 0 or follows == 1:
        beyond = _next(coarse, at + follows, ("VERB",), 3) if follows and coarse[at + follows] == "AUX" else 0
        return "nsubj", follows + beyond
    return ("obj", verb - at) if verb > noun else ("appos", noun - at)


def _clause(at: int, words: Sequence[str], verb: int, mark: bool, conjunction: bool) -> tuple[str, int]:
    """Of a verb."""
    back = verb - at if verb >= 0 else 0
    if mark:
        return ("xcomp", back) if at and words[at - 1].lower() == "to" else ("advcl", back)
    if conjunction:
        return "conj", back
    return ("root", 0) if verb < 0 else ("advcl", back)
