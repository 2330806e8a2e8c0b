"""From the name or path of a text to three splits of token ids, cached by content, or prepared in a folder to carry.

The token stream of a split is

* with the BPE: `<BOS>`, then every document followed by `<EOS>`;
* with the word vocabulary: one `<eos>`, then the words of every document with `<eos>` for each end of line (a document
  that does not end in one gets one).

The first token is context only. Every other token is predicted exactly once by `EvalWindows`.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from mu_sota.common.files import cache_folder, replacing, write_json
from mu_sota.model.errors import InputError

from .readers import read_file
from .sources import NAMES, find_source
from .splits import SPLITS, Documents
from .tokenizer import TOKENIZER_FILE, encode, is_word_level, load_tokenizer, save_tokenizer, train_bpe, train_words

_CACHE_FORMAT = 1  # raise it when documents, splits or token streams change
_META_FILE = "meta.json"
_BPE_ENTRIES = 50_000

TokenizerChoice = Literal["bpe", "word"] | PreTrainedTokenizerFast


@dataclass(frozen=True)
class Split:
    """One split as a stream of token ids (see the module's docstring).

    `tokens` is a read-only memory map of shape (tokens,), uint16 where the vocabulary fits and uint32 otherwise.
    `n_words` (separated by white space), `n_bytes` (UTF-8) and `n_documents` count the text itself.
    """

    tokens: np.ndarray
    n_words: int
    n_bytes: int
    n_documents: int

    @property
    def n_predicted(self) -> int:
        """Number of tokens that are predicted: all but the first."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Corpus:
    """Three splits that share no document, and the tokenizer of their ids.

    `fingerprint` changes with the text, the tokenizer and the way the text is split. `asked` is what was asked
    for: `tokenizer`, and for a bpe `vocab_size`, its most entries; nothing where the tokenizer was given.
    """

    source: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerFast
    train: Split
    validation: Split
    test: Split
    asked: dict[str, Any] = field(default_factory=dict, kw_only=True)


def load_corpus(
    source: str,
    *,
    tokenizer: TokenizerChoice | None = None,
    vocab_size: int | None = None,
    cache_dir: Path | None = None,
) -> Corpus:
    """Read, split and tokenize a corpus, and keep it in the cache; or open it from there.

    `source` is one of

    * `pydocs`: English prose that comes with Python itself: the language reference of `pydoc` and the docstrings of
      the standard library. A document is a topic or a module.
    * `wikitext-2`: the raw WikiText-2 of the Hugging Face hub, one document a split.
    * a folder that `save_corpus` (`mu-sota prepare`) wrote: its tokens, as they are.
    * a folder with files named train, valid (or validation, val, dev) and test: those splits.
    * any other file or folder: 90/5/5 %, by document where there are at least 100, otherwise by cutting every document
      at line ends.

    Files are .txt (one document), .jsonl (field "text") or .parquet (column "text"); blank documents are dropped.

    `tokenizer` is trained on the training split, with up to `vocab_size` entries for "bpe" and every word for "word";
    or it is a trained tokenizer, used as it is. Left out, they are "bpe" and 50,000; of a prepared folder, what it was
    prepared with. `cache_dir` defaults to the environment variable MU_SOTA_CACHE, then to ~/.cache/mu_sota.

    Raises:
        InputError: the source does not exist or cannot be read, holds no text, or cannot be split; the tokenizer is
            unknown or has no end-of-text token; the cache cannot be written; a prepared folder is damaged, or was
            prepared with another tokenizer.
    """
    prepared = Path(source).expanduser()
    if source not in NAMES and _is_prepared(prepared):
        opened = _open(prepared, source)
        _require_tokenizer(opened, tokenizer, vocab_size)
        return opened
    tokenizer = tokenizer or "bpe"
    vocab_size = _BPE_ENTRIES if vocab_size is None else vocab_size
    found = find_source(source)
    described = json.dumps([_CACHE_FORMAT, found.fingerprint, _tokenizer_fingerprint(tokenizer, vocab_size)])
    cache = cache_dir or cache_folder()
    folder = cache / hashlib.sha256(described.encode()).hexdigest()
    asked = _asked(tokenizer, vocab_size)

    def cached() -> Corpus | None:
        try:
            return _open(folder, source, tokenizer, asked)
        except InputError:  # there is none, or it is damaged
            return None

    corpus = cached()
    if corpus is not None:
        return corpus
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of several processes, one builds and the others wait
            corpus = cached()
            if corpus is None:
                _build(folder, _none_empty(found.read(), source), tokenizer, vocab_size)
                corpus = _open(folder, source, tokenizer, asked)
    except OSError as error:
        raise InputError(
            f"The cache {cache} cannot be written ({error.strerror or error}): free space, fix its permissions, or "
            "set MU_SOTA_CACHE to another folder."
        ) from error
    return corpus


def save_corpus(corpus: Corpus, folder: Path) -> None:
    """Write a corpus to a new folder, which `load_corpus` takes on any machine: no text, only tokens and tokenizer.

    What is loaded from there has the same fingerprint.

    Raises:
        InputError: `folder` is there already, or the corpus was loaded with a trained tokenizer.
    """
    if not corpus.asked:
        raise InputError(
            "A corpus with a trained tokenizer cannot be prepared, for no run asks for it: load it without."
        )
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already: give the name of a new folder, or remove that one.")
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_tokenizer(corpus.tokenizer, temporary / TOKENIZER_FILE)
        splits = {name: getattr(corpus, name) for name in SPLITS}
        _write(temporary, splits, {"fingerprint": corpus.fingerprint, "asked": corpus.asked})


def load_file(path: Path, tokenizer: PreTrainedTokenizerFast) -> Split:
    """All of one file as a single split, to evaluate on.

    Raises:
        InputError: the file cannot be read, is of another kind than `load_corpus` takes, or holds no text.
    """
    texts = read_file(path)
    if not texts:
        raise InputError(f"{path} holds no text: give a file that does.")
    return _tokenize(texts, tokenizer)


def _tokenizer_fingerprint(tokenizer: TokenizerChoice, vocab_size: int) -> list[object]:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return [tokenizer.backend_tokenizer.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id]
    if tokenizer == "bpe":
        return ["bpe", vocab_size]
    if tokenizer == "word":
        return ["word"]
    raise InputError(f"Unknown tokenizer {tokenizer!r}: give bpe, word, or a trained tokenizer.")


def _none_empty(documents: Documents, source: str) -> Documents:
    if not any(documents.values()):
        raise InputError(f"{source} holds no text: give a file or folder that does.")
    for split in SPLITS:
        if not documents[split]:
            raise InputError(
                f"{source} gives an empty {split} split: give more text, or a folder with train.txt, valid.txt and "
                "test.txt."
            )
    return documents


def _tokenize(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> Split:
    """The token stream of a split, with the format in the module's docstring."""
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("The tokenizer has no end-of-text token, which separates documents: set its eos_token.")
    first = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    parts = [np.array([first], np.uint32)]
    for text in documents:
        if is_word_level(tokenizer):
            parts.append(encode(tokenizer, text if text.endswith("\n") else text + "\n"))
        else:
            parts += [encode(tokenizer, text), np.array([end], np.uint32)]
    return Split(
        np.concatenate(parts).astype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32),
        n_words=sum(len(text.split()) for text in documents),
        n_bytes=sum(len(text.encode("utf-8")) for text in documents),
        n_documents=len(documents),
    )


def _build(folder: Path, documents: Documents, tokenizer: TokenizerChoice, vocab_size: int) -> None:
    """Train the tokenizer, unless it is trained, and write it and the tokens of every split."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            texts = documents["train"]
            tokenizer = train_words(texts) if tokenizer == "word" else train_bpe(texts, vocab_size)
            save_tokenizer(tokenizer, temporary / TOKENIZER_FILE)
        _write(temporary, {name: _tokenize(texts, tokenizer) for name, texts in documents.items()})


def _write(folder: Path, splits: dict[str, Split], about: dict[str, Any] | None = None) -> None:
    """The tokens of every split, and their counts in `meta.json` beside what else is to be said there."""
    meta = dict(about or {})
    for name, split in splits.items():
        np.save(folder / f"{name}.npy", split.tokens)
        counts = {"n_words": split.n_words, "n_bytes": split.n_bytes, "n_documents": split.n_documents}
        meta[name] = {"n_tokens": len(split.tokens), **counts}
    write_json(folder / _META_FILE, meta)


def _open(
    folder: Path, source: str, tokenizer: TokenizerChoice | None = None, asked: dict[str, Any] | None = None
) -> Corpus:
    """The corpus in a folder of the cache, or, where it is not said what is `asked` for, in a prepared one.

    Raises:
        InputError: a file is missing or damaged.
    """
    file = folder / TOKENIZER_FILE
    try:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            tokenizer = load_tokenizer(file)
        file = folder / _META_FILE
        meta = json.loads(file.read_text(encoding="utf-8"))
        counts = {name: dict(meta[name]) for name in SPLITS}
        prepared = asked is None
        fingerprint, asked = (meta["fingerprint"], dict(meta["asked"])) if asked is None else (folder.name, asked)
        splits = {}
        for name in SPLITS:
            file = folder / f"{name}.npy"
            tokens = np.load(file, mmap_mode="r")
            if tokens.shape != (counts[name].pop("n_tokens"),) or (prepared and tokens.max() >= len(tokenizer)):
                raise ValueError("other tokens than those of its meta.json and tokenizer")
            splits[name] = Split(tokens, **counts[name])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is {'damaged' if file.exists() else 'missing'}: copy the prepared folder again, or write a new "
            "one with mu-sota prepare."
        ) from error
    return Corpus(source, fingerprint, tokenizer, **splits, asked=asked)


def _is_prepared(folder: Path) -> bool:
    """True if a folder holds tokens, be it damaged: it is never taken for text."""
    try:
        return any((folder / f"{name}.npy").exists() for name in SPLITS)
    except OSError:  # which `find_source` will name
        return False


def _asked(tokenizer: TokenizerChoice, vocab_size: int) -> dict[str, Any]:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return {}
    return {"tokenizer": tokenizer} | ({"vocab_size": vocab_size} if tokenizer == "bpe" else {})


def _require_tokenizer(corpus: Corpus, tokenizer: TokenizerChoice | None, vocab_size: int | None) -> None:
    """Refuse a prepared corpus that has another tokenizer than is asked for."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        if _rules(tokenizer) != _rules(corpus.tokenizer):
            raise InputError(
                f"{corpus.source} was prepared with another tokenizer than the given one: give the text itself."
            )
        return
    for key, wanted in {"tokenizer": tokenizer, "vocab_size": vocab_size}.items():
        had = corpus.asked.get(key, wanted)  # a closed vocabulary has the words that it has
        if wanted not in (None, had):
            raise InputError(
                f"{corpus.source} was prepared with {key}={had}, and {key}={wanted} is asked for: "
                f"set {key}={had}, or prepare the text anew."
            )


def _rules(tokenizer: PreTrainedTokenizerFast) -> list[object]:
    """What decides the tokens of a text, however the tokenizer was saved."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = [content[part] for part in ("model", "normalizer", "pre_tokenizer")]
    return [*parts, tokenizer.bos_token_id, tokenizer.eos_token_id]
