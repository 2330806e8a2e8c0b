"""Texts with labelled words: Universal Dependencies treebanks and entity corpora, as their files are published.

* CoNLL-U (https://universaldependencies.org/format.html): part of speech, features, relation and head of every word;
  documents by `# newdoc id`, texts as they were written.
* Two columns, word and BIO tag, as WNUT 2017 has them (Derczynski et al. 2017): a sentence is a document of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mu_sota.model.errors import InputError

SUFFIXES = (".conllu", ".conll")


@dataclass(frozen=True)
class Word:
    """A word of a document, and what annotators say of it; None is for not annotated.

    Attributes:
        text: as it is written.
        start, end: its place in the document's text, in characters.
        sentence: counted from 0 in the document.
        index: in its sentence, counted from 0.
        upos: universal part of speech.
        features: such as Tense and Mood.
        relation: to its head, with its subtype, such as `nsubj:pass`.
        head_offset: words from it to its head, negative for one before it; 0 for the root.
        entity: BIO tag.
    """

    text: str
    start: int
    end: int
    sentence: int
    index: int
    upos: str | None = None
    features: dict[str, str] = field(default_factory=dict)
    relation: str | None = None
    head_offset: int | None = None
    entity: str | None = None


@dataclass(frozen=True)
class Document:
    """A text and its words, in order.

    Attributes:
        name: in its corpus.
        genre: what the name begins with, such as `reviews`; None if names say nothing of it.
        text: as it was written.
        words: all of them.
    """

    name: str
    genre: str | None
    text: str
    words: list[Word]


def read_labelled(path: Path) -> list[Document]:
    """The documents of a .conllu file, or of a .conll file of words and BIO tags.

    Raises:
        InputError: the file is missing, or is neither.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no labelled text: give a .conllu file, or a .conll file of words and BIO tags")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"the labelled text {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labelled text {path} cannot be read: {' '.join(str(error).split())}") from None
    read = _treebank if path.suffix == ".conllu" else _entities
    documents = list(read(path, lines))
    if not documents:
        raise InputError(f"{path} holds no labelled words")
    return documents


_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_WORDS_OF_A_PIECE = 400


def plain_documents(text: str) -> list[Document]:
    """A text in pieces of 400 words that nobody has labelled: questions about words themselves can be asked of it.

    Words are what letters, digits and apostrophes make, and single signs; `.`, `!` and `?` end a sentence.
    """
    found = list(_WORD.finditer(text))
    documents = []
    for number, first in enumerate(range(0, len(found), _WORDS_OF_A_PIECE)):
        piece = found[first : first + _WORDS_OF_A_PIECE]
        words: list[Word] = []
        sentence, index, begin = 0, 0, piece[0].start()
        for match in piece:
            words.append(Word(match[0], match.start() - begin, match.end() - begin, sentence, index))
            index += 1
            if match[0] in ".!?":
                sentence, index = sentence + 1, 0
        documents.append(Document(str(number), None, text[begin : piece[-1].end()], words))
    return documents


def _sentences(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, lines) of every sentence; blank lines part them."""
    sentence: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            sentence.append(line)
        elif sentence:
            yield number - len(sentence), sentence
            sentence = []


class _Writer:
    """Puts a document together, word by word."""

    def __init__(self, name: str, genre: str | None = None) -> None:
        self.name, self.genre, self.text, self.words = name, genre, "", list[Word]()

    def document(self) -> Document:
        return Document(self.name, self.genre, self.text.rstrip(), self.words)


def _treebank(path: Path, lines: list[str]) -> Iterator[Document]:
    document, sentences = _Writer(path.stem), 0
    for first, sentence in _sentences(lines):
        for line in sentence:
            if match := re.match(r"# newdoc(?: id = (.*))?", line):
                if document.words:
                    yield document.document()
                name = (match[1] or f"{path.stem} {first}").strip()
                genre = re.match(r"[a-z]+(?=-)", name)
                document, sentences = _Writer(name, genre and genre[0]), 0
        rows = [line.split("\t") for line in sentence if not line.startswith("#")]
        if any(len(row) != 10 for row in rows):
            raise InputError(f"{path}, line {first}: a sentence whose words have not the 10 columns of CoNLL-U")
        _add_sentence(document, rows, sentences)
        sentences += 1
    if document.words:
        yield document.document()


def _add_sentence(document: _Writer, rows: list[list[str]], sentence: int) -> None:
    """Write a sentence's words, and the words that some are contracted to: `don't` is written for `do` and `n't`."""
    contracted, contracted_to = "", 0  # what is left of a contraction, and the id of its last word
    for row in rows:
        number, form, _, upos, _, features, head, relation, _, more = row
        space = "" if "SpaceAfter=No" in more else " "
        if "-" in number:
            contracted, contracted_to, space_after = form, int(number.split("-")[1]), space
            continue
        if "." in number:  # a word that was left out of the sentence
            continue
        start = len(document.text)
        index, written = int(number) - 1, form
        if contracted:
            last = int(number) == contracted_to
            # Its own part of the contraction; where the parts are not its letters, the last word has all of it.
            written = contracted if last else form if contracted.startswith(form) else ""
            contracted = contracted[len(written) :]
            space = space_after if last else ""
            if last:
                contracted = ""
        document.text += written + space
        if not written:
            continue
        document.words.append(
            Word(
                form,
                start,
                start + len(written),
                sentence,
                index,
                upos,
                dict(pair.split("=", 1) for pair in features.split("|") if "=" in pair),
                relation,
                int(head) - int(number) if head not in ("0", "_") else 0,
            )
        )


def _entities(path: Path, lines: list[str]) -> Iterator[Document]:
    for number, (first, sentence) in enumerate(_sentences(lines)):
        document = _Writer(f"{path.stem} {number}")
        for index, line in enumerate(sentence):
            word, tab, tag = line.partition("\t")
            if not tab or not re.match(r"O$|[BI]-", tag):
                raise InputError(f"{path}, line {first + index}: {line!r} is no word, tab and BIO tag")
            start = len(document.text)
            document.text += f"{word} "
            entity = tag.split(",")[0]  # a few words are in two entities: the first named
            document.words.append(Word(word, start, start + len(word), 0, index, entity=entity))
        yield document.document()
