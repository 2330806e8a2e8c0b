"""Word lists of small packages, read as files: nothing of the packages is run.

VADER (Hutto and Gilbert 2014) and AFINN (Nielsen 2011) say how positive a word is, Empath (Fast, Chen and Bernstein
2016, arXiv:1602.06979) what it has to do with, and TextBlob's copy of Brill's lexicon (1992) which tag it has.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mu_sota.model.errors import InputError

_PACKAGES = ("afinn", "empath", "textblob", "vaderSentiment")
_MILD = 0.5  # of 4, in VADER: below it a word is as good as neutral
# Of Empath's 194 topics, those that are what block A is named for.
_FEELINGS = (
    "affection aggression anger anticipation cheerfulness confusion contentment disappointment disgust emotional envy "
    "exasperation fear fun hate horror irritability joy love lust neglect negative_emotion nervousness optimism pain "
    "positive_emotion pride rage ridicule sadness shame suffering surprise sympathy timidity torment trust zest"
)


def refuse_missing() -> None:
    """Before anything is measured or trained that asks for a word list.

    Raises:
        InputError: a package is not installed.
    """
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise InputError(f"word lists are missing: pip install {' '.join(missing)}")


def polarity() -> dict[str, str]:
    """`positive` or `negative` of VADER's words, those of letters alone.

    Raises:
        InputError: the package is not installed.
    """
    found = {}
    for line in _lines("vaderSentiment", "vader_lexicon.txt"):
        word, valence, *_ = line.split("\t")
        if word.isalpha() and abs(float(valence)) >= _MILD:
            found[word] = "positive" if float(valence) > 0 else "negative"
    return found


def topics() -> dict[str, str]:
    """A topic of each of Empath's words: of those that it belongs to, the one with the most words. No feeling is one.

    Raises:
        InputError: the package is not installed.
    """
    rows = [line.split("\t") for line in _lines("empath", "data/categories.tsv")]
    found, feelings = dict[str, str](), _FEELINGS.split()
    for topic, *words in sorted(rows, key=len):
        if topic not in feelings:
            found |= dict.fromkeys(words, topic)
    return found


def valence() -> dict[str, str]:
    """`positive` or `negative` of AFINN's words (Nielsen 2011, arXiv:1103.2903): another list than VADER's.

    Raises:
        InputError: the package is not installed.
    """
    rows = (line.split("\t") for line in _lines("afinn", "data/AFINN-en-165.txt"))
    return {word: "positive" if float(value) > 0 else "negative" for word, value in rows if float(value)}


@cache
def tags() -> dict[str, str]:
    """The likeliest tag of the Penn Treebank for each word of Brill's lexicon (1992), as TextBlob has it.

    Raises:
        InputError: the package is not installed.
    """
    rows = (line.split() for line in _lines("textblob", "en/en-lexicon.txt") if not line.startswith(";;;"))
    return {row[0]: row[1] for row in rows if len(row) == 2}


def _lines(package: str, name: str) -> list[str]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the word list of {package} is missing: pip install {package}")
    return Path(spec.submodule_search_locations[0], name).read_text(encoding="utf-8").splitlines()
