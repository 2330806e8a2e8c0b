"""From the name or path of a text to three splits of token ids, cached by content.

The token stream of a split is

* with the BPE: `<BOS>`, then every document followed by `<EOS>`;
* with the word vocabulary: one `<eos>`, then the words of every document with `<eos>` for each end of line (a document
  that does not end in one gets one).

The first token is context only. Every other token is predicted exactly once by `EvalWindows`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from mu_sota.common.files import cache_folder, replacing, write_json
from mu_sota.model.errors import InputError

from .readers import read_file
from .sources import find_source
from .splits import SPLITS, Documents
from .tokenizer import TOKENIZER_FILE, encode, is_word_level, load_tokenizer, save_tokenizer, train_bpe, train_words

_CACHE_FORMAT = 1  # raise it when documents, splits or token streams change


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

    `fingerprint` changes with the text, the tokenizer and the way the text is split.
    """

    source: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerFast
    train: Split
    validation: Split
    test: Split


def load_corpus(
    source: str,
    *,
    tokenizer: TokenizerChoice = "bpe",
    vocab_size: int = 50_000,
    cache_dir: Path | None = None,
) -> Corpus:
    """Read, split and tokenize a corpus, and keep it in the cache; or open it from there.

    `source` is one of

    * `pydocs`: English prose that comes with Python itself: the language reference of `pydoc` and the docstrings of
      the standard library. A document is a topic or a module.
    * `wikitext-2`: the raw WikiText-2 of the Hugging Face hub, one document a split.
    * a folder with files named train, valid (or validation, val, dev) and test: those splits.
    * any other file or folder: 90/5/5 %, by document where there are at least 100, otherwise by cutting every document
      at line ends.

    Files are .txt (one document), .jsonl (field "text") or .parquet (column "text"); blank documents are dropped.

    `tokenizer` is trained on the training split, with up to `vocab_size` entries for "bpe" and every word for "word";
    or it is a trained tokenizer, used as it is. `cache_dir` defaults to the environment variable MU_SOTA_CACHE, then
    to ~/.cache/mu_sota.

    Raises:
        InputError: the source does not exist or cannot be read, holds no text, or cannot be split; the tokenizer is
            unknown or has no end-of-text token; the cache cannot be written.
    """
    found = find_source(source)
    described = json.dumps([_CACHE_FORMAT, found.fingerprint, _tokenizer_fingerprint(tokenizer, vocab_size)])
    cache = cache_dir or cache_folder()
    folder = cache / hashlib.sha256(described.encode()).hexdigest()

    corpus = _open(folder, source, tokenizer)
    if corpus is not None:
        return corpus
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of several processes, one builds and the others wait
            corpus = _open(folder, source, tokenizer)
            if corpus is None:
                _build(folder, _none_empty(found.read(), source), tokenizer, vocab_size)
                corpus = _open(folder, source, tokenizer)
    except OSError as error:
        raise InputError(
            f"The cache {cache} cannot be written ({error.strerror or error}): free space, fix its permissions, or "
            "set MU_SOTA_CACHE to another folder."
        ) from error
    assert corpus is not None
    return corpus


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
        meta = {}
        for name, texts in documents.items():
            split = _tokenize(texts, tokenizer)
            np.save(temporary / f"{name}.npy", split.tokens)
            counts = {"n_words": split.n_words, "n_bytes": split.n_bytes, "n_documents": split.n_documents}
            meta[name] = {"n_tokens": len(split.tokens), **counts}
        write_json(temporary / "meta.json", meta)


def _open(folder: Path, source: str, tokenizer: TokenizerChoice) -> Corpus | None:
    """The cached corpus, or None where there is none or it is damaged."""
    try:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        splits = {}
        for name in SPLITS:
            tokens = np.load(folder / f"{name}.npy", mmap_mode="r")
            counts = dict(meta[name])
            if tokens.shape != (counts.pop("n_tokens"),):
                return None
            splits[name] = Split(tokens, **counts)
        return Corpus(source, folder.name, tokenizer, **splits)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
