"""From one source string to three splits of token ids, cached by content, and the windows cut from them.

A source is `pydocs`, `wikitext-2`, a file or a folder; see `load_corpus`. The token stream of a split is

* with the BPE: `<BOS>`, then every document followed by `<EOS>`;
* with the word vocabulary: one `<eos>`, then the words of every document with `<eos>` for each end of line (a document
  that does not end in one gets one).

The first token is context only. Every other token is predicted exactly once by `EvalWindows`.
"""

import ast
import hashlib
import inspect
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from mu_sota.common.files import cache_folder, replacing, write_json
from mu_sota.model.errors import InputError
from mu_sota.model.loss import IGNORE_INDEX

from .tokenizer import TOKENIZER_FILE, encode, is_word_level, load, save, train_bpe, train_words

_SPLITS = ("train", "validation", "test")
_SPLIT_STEMS = {"train": ("train",), "validation": ("valid", "validation", "val", "dev"), "test": ("test",)}
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_SOURCES = "`pydocs`, `wikitext-2`, or the path of a .txt, .jsonl or .parquet file or of a folder of them"

_TRAIN_SHARE, _VALIDATION_SHARE = 0.90, 0.05  # the rest is the test split
_ENOUGH_DOCUMENTS = 100  # below, 5 % of the documents is too coarse a split

_CACHE_FORMAT = 1  # raise it when documents, splits or token streams change

_Documents = dict[str, list[str]]  # split -> the texts of its documents


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
    tokenizer: Literal["bpe", "word"] | PreTrainedTokenizerFast = "bpe",
    vocab_size: int = 50_000,
    cache_dir: Path | None = None,
) -> Corpus:
    """Read, split and tokenize a corpus; from the second time on, open what the first left in the cache.

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
    given = tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None
    settings: list[object]
    if given is not None:
        settings = [given.backend_tokenizer.to_str(), given.bos_token_id, given.eos_token_id]
    elif tokenizer == "bpe":
        settings = ["bpe", vocab_size]
    elif tokenizer == "word":
        settings = ["word"]
    else:
        raise InputError(f"Unknown tokenizer {tokenizer!r}: give bpe, word, or a trained tokenizer.")
    fingerprint, read = _resolve(source)
    key = hashlib.sha256(json.dumps([_CACHE_FORMAT, fingerprint, settings]).encode()).hexdigest()
    cache = cache_dir or cache_folder()
    folder = cache / key

    corpus = _open(folder, source, given)
    if corpus is not None:
        return corpus
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{key}.lock"):  # of several processes, one builds and the others wait
            corpus = _open(folder, source, given)
            if corpus is None:
                documents = _checked(read(), source)
                with replacing(folder) as temporary:
                    temporary.mkdir()
                    ready = given
                    if ready is None:
                        train = documents["train"]
                        ready = train_words(train) if tokenizer == "word" else train_bpe(train, vocab_size)
                        save(ready, temporary / TOKENIZER_FILE)
                    _write_splits(temporary, documents, ready)
                corpus = _open(folder, source, given)
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
    if path.suffix.lower() not in _SUFFIXES:
        raise _unknown_kind(path)
    texts = _read_file(path)
    if not texts:
        raise InputError(f"{path} holds no text: give a file that does.")
    return Split(_stream(texts, tokenizer), **_counts(texts))


class TrainWindows(Dataset[dict[str, torch.Tensor]]):
    """Overlapping training windows; item i covers tokens[i * stride : i * stride + window + 1].

    An item has `input_ids` and `shift_labels`, int64 of shape (window,); shift_labels[t] is the token that follows
    input_ids[t].

    Raises:
        InputError: `window` or `stride` is below 1, or there are fewer than window + 1 tokens.
    """

    def __init__(self, tokens: np.ndarray, window: int = 512, stride: int = 256) -> None:
        _require_positive(window=window, stride=stride)
        if len(tokens) < window + 1:
            raise InputError(
                f"The training split has {len(tokens)} tokens, a window of {window} needs {window + 1}: shorten it "
                "with --set window=..., or give more text."
            )
        self.tokens, self.window, self.stride = tokens, window, stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.window - 1) // self.stride + 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = range(0, len(self) * self.stride, self.stride)[index]
        return _item(self.tokens, start, self.window)


class EvalWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows that score every token but the first exactly once.

    With `stride` < `window` each window begins with tokens that the one before has scored: context, labelled -100. So
    every scored token but those of the first window has at least window - stride tokens of context beside the one it
    follows. All items have the length min(window, tokens - 1): the last window starts early enough to be full.

    Items are as in `TrainWindows`.

    Raises:
        InputError: there are fewer than 2 tokens, or not 1 <= stride <= window.
    """

    def __init__(self, tokens: np.ndarray, window: int = 512, stride: int = 512) -> None:
        _require_positive(window=window, stride=stride)
        if stride > window:
            raise InputError(
                f"The stride {stride} is longer than the window {window} and would skip tokens: give at most {window}."
            )
        if len(tokens) < 2:
            raise InputError(
                f"The evaluation split has {len(tokens)} tokens, and at least 2 are needed to predict one: give more "
                "text."
            )
        self.tokens, self.stride = tokens, stride
        self.length = min(window, len(tokens) - 1)

    def __len__(self) -> int:
        beyond_first = len(self.tokens) - 1 - self.length
        return 1 + -(-beyond_first // self.stride)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]
        start = min(index * self.stride, len(self.tokens) - 1 - self.length)
        item = _item(self.tokens, start, self.length)
        if index > 0:
            scored_up_to = (index - 1) * self.stride + self.length
            item["shift_labels"][: scored_up_to - start] = IGNORE_INDEX
        return item


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"The {name} is {size}: give at least 1.")


def _item(tokens: np.ndarray, start: int, length: int) -> dict[str, torch.Tensor]:
    piece = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
    return {"input_ids": piece[:-1], "shift_labels": piece[1:].clone()}


# ---- sources: a fingerprint that is cheap to take, and a function that reads the documents -------------------------


def _resolve(source: str) -> tuple[Any, Callable[[], _Documents]]:
    if source == "pydocs":
        library = Path(sysconfig.get_paths()["stdlib"])
        return ["pydocs", platform.python_version(), str(library)], lambda: _read_pydocs(library)
    if source == "wikitext-2":
        return ["wikitext-2-raw-v1"], _read_wikitext
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _resolve_folder(path)
        if path.is_file():
            return _resolve_files(path.parent, [path])
        missing = not path.exists()
    except OSError as error:
        raise _unreadable(path, error) from error
    if missing:
        raise InputError(f"There is no data named {str(source)!r}, nor a file or folder of that name: give {_SOURCES}.")
    raise InputError(f"{path} is neither a file nor a folder: give {_SOURCES}.")


def _resolve_folder(folder: Path) -> tuple[Any, Callable[[], _Documents]]:
    by_split = {split: _split_files(folder, split) for split in _SPLITS}
    if any(by_split.values()):
        for split, files in by_split.items():
            if not files:
                raise InputError(
                    f"{folder} has a file for one split but none for {split}: add {_SPLIT_STEMS[split][0]}.txt (or "
                    ".jsonl, .parquet), or give one file to have it split."
                )
        return (
            [[split, [_digest(file) for file in files]] for split, files in by_split.items()],
            lambda: {split: [text for file in files for text in _read_file(file)] for split, files in by_split.items()},
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder} holds no {', '.join(_SUFFIXES)} file: give a folder that does.")
    return _resolve_files(folder, files)


def _resolve_files(folder: Path, files: list[Path]) -> tuple[Any, Callable[[], _Documents]]:
    for file in files:
        if file.suffix.lower() not in _SUFFIXES:
            raise _unknown_kind(file)
    return (
        [[file.relative_to(folder).as_posix(), _digest(file)] for file in files],
        lambda: _split_documents([text for file in files for text in _read_file(file)]),
    )


def _split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split, or its numbered shards (train-00000-of-00002.parquet, ...)."""
    stems, suffixes = "|".join(_SPLIT_STEMS[split]), "|".join(map(re.escape, _SUFFIXES))
    pattern = re.compile(rf"({stems})(-\d+-of-\d+)?({suffixes})", re.IGNORECASE)
    found = sorted((path, match) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))
    if len({(match[1], match[2] is None, match[3]) for _, match in found}) > 1:
        raise InputError(
            f"{folder} has more than one {split} file ({', '.join(path.name for path, _ in found)}): keep one."
        )
    return [path for path, _ in found]


def _split_documents(documents: list[str]) -> _Documents:
    """Whole documents by the hash of their text, so that equal ones meet in one split; a few documents are cut."""
    if len(documents) >= _ENOUGH_DOCUMENTS:
        return _by_hash((document, document) for document in documents)
    splits: _Documents = {split: [] for split in _SPLITS}
    for document in documents:
        first = _line_end(document, int(len(document) * _TRAIN_SHARE))
        second = _line_end(document, max(first, int(len(document) * (_TRAIN_SHARE + _VALIDATION_SHARE))))
        pieces = (document[:first], document[first:second], document[second:])
        for split, piece in zip(_SPLITS, pieces, strict=True):
            if piece:
                splits[split].append(piece)
    return splits


def _line_end(text: str, position: int) -> int:
    """The first end of a line at or after `position`, or the end of the text."""
    return text.find("\n", position) + 1 or len(text)


def _by_hash(documents: Iterable[tuple[str, str]]) -> _Documents:
    """Split (key, text) pairs by a hash of the key, which stays when other documents come or go."""
    splits: _Documents = {split: [] for split in _SPLITS}
    for key, text in documents:
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        split = "train" if share < _TRAIN_SHARE else "test"
        if _TRAIN_SHARE <= share < _TRAIN_SHARE + _VALIDATION_SHARE:
            split = "validation"
        splits[split].append(text)
    return splits


# ---- files ---------------------------------------------------------------------------------------------------------


def _unknown_kind(path: Path) -> InputError:
    return InputError(f"{path} is not a {', '.join(_SUFFIXES)} file: convert it to one of these.")


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions and its disk.")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest(path: Path) -> list[str]:
    """What the documents of a file depend on: its format and its bytes."""
    return [path.suffix.lower(), hashlib.sha256(_bytes(path)).hexdigest()]


def _read_file(path: Path) -> list[str]:
    """The documents of a file, blank ones left out."""
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    return [text for text in readers[path.suffix.lower()](path) if text and not text.isspace()]


def _read_text(path: Path) -> list[str]:
    content = _bytes(path)
    try:
        return [content.decode("utf-8")]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8."
        ) from None


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            raise InputError(
                f"{path}, line {number} is not JSON ({error}): give one JSON object a line, in UTF-8."
            ) from None
        if not isinstance(record, dict):
            raise InputError(f'{path}, line {number} is not a JSON object: give {{"text": "..."}} on every line.')
        text = record.get("text")
        if not isinstance(text, str):
            problem = f"a field `text` of type {type(text).__name__}" if "text" in record else "no field `text`"
            fields = ", ".join(record) or "none"
            raise InputError(
                f"{path}, line {number} has {problem} (fields: {fields}): put the document there as a string."
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"{path}, line {number} escapes a lone surrogate, which is not a character: remove it."
            ) from None
        yield text


def _read_parquet(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_bytes(path)))
        names = file.schema_arrow.names
        if "text" not in names:
            raise InputError(
                f"{path} has no column `text` (columns: {', '.join(names)}): rename the column with the documents."
            )
        texts = file.read(columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}): write it again.") from error
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(
                f"{path}, row {number}: `text` is of type {type(text).__name__}: put the document there as a string."
            )
    return texts


# ---- the embedded corpus and the hub -------------------------------------------------------------------------------

# With this salt the splits are near 90/5/5 % of the bytes too, in Python 3.10 to 3.13, uneven as the documents are.
_PYDOCS_SALT = "pydocs 86 "
_SHORT_PARAGRAPH = 60  # characters

# Tests, vendored and deprecated copies, generated tables: no prose, or the same prose twice.
_NO_PROSE = {
    *("test", "tests", "idle_test", "turtledemo", "encodings", "pydoc_data", "__pycache__"),
    *("site-packages", "dist-packages", "_bundled", "lib2to3", "distutils"),
}


def _read_pydocs(library: Path) -> _Documents:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _no_pydocs("module pydoc_data") from error
    sources = sorted(
        path for path in library.rglob("*.py") if _NO_PROSE.isdisjoint(path.relative_to(library).parts[:-1])
    )
    if not sources:
        raise _no_pydocs(f"sources of the standard library in {library}")

    texts = {f"topic {name}": text.strip() for name, text in topics.items()}
    for path in sources:
        module = ".".join(path.relative_to(library).with_suffix("").parts)
        texts[f"module {module}"] = "\n\n".join(dict.fromkeys(_docstrings(path)))
    return _by_hash((_PYDOCS_SALT + name, text) for name, text in _without_repeats(texts).items())


def _without_repeats(texts: dict[str, str]) -> dict[str, str]:
    """Drop paragraphs that an earlier text has, which would leak between splits; longest text first.

    A fifth of the language reference is there twice, as a chapter and as a topic of its own. Lines too short to tell a
    leak from a coincidence ("For example:") stay, but do not make a text by themselves.
    """
    seen: set[str] = set()
    kept = {}
    for name, text in sorted(texts.items(), key=lambda item: (-len(item[1]), item[0])):
        paragraphs = [part for part in text.split("\n\n") if len(part) < _SHORT_PARAGRAPH or part not in seen]
        new = {part for part in paragraphs if len(part) >= _SHORT_PARAGRAPH}
        if new:
            seen |= new
            kept[name] = "\n\n".join(dict.fromkeys(paragraphs)) + "\n"
    return kept


def _no_pydocs(lacking: str) -> InputError:
    return InputError(f"This Python has no {lacking}, so `pydocs` cannot be made: give another text with --data.")


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a module in the order of its source; the module is parsed, never imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        try:
            tree = ast.parse(_bytes(path))
        except (SyntaxError, ValueError):  # templates and deliberately broken files
            return []
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    docstrings = (ast.get_docstring(node, clean=False) for node in nodes)
    return [text for text in (inspect.cleandoc(docstring).strip() for docstring in docstrings if docstring) if text]


def _read_wikitext() -> _Documents:
    import datasets.config
    from huggingface_hub import constants, get_session

    offline, reason = datasets.config.HF_HUB_OFFLINE, ""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:
        reason = f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
        # `load_dataset` would retry for half a minute; told that it is offline, it goes to its local copy at once.
        datasets.config.HF_HUB_OFFLINE = True
    try:
        splits = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1")
    except Exception as error:  # network, hub and cache each have their own
        raise InputError(
            f"wikitext-2 cannot be had from the Hugging Face hub and there is no local copy ({reason or error}): use "
            "--data pydocs, or a folder with train.txt, valid.txt and test.txt."
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return {split: ["".join(splits[split]["text"])] for split in _SPLITS}


# ---- the cache -----------------------------------------------------------------------------------------------------


def _checked(documents: _Documents, source: str) -> _Documents:
    if not any(documents.values()):
        raise InputError(f"{source} holds no text: give a file or folder that does.")
    for split in _SPLITS:
        if not documents[split]:
            raise InputError(
                f"{source} gives an empty {split} split: give more text, or a folder with train.txt, valid.txt and "
                "test.txt."
            )
    return documents


def _stream(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """The token stream of a split, as the module's docstring says; shape (tokens,)."""
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
    return np.concatenate(parts).astype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


def _counts(texts: list[str]) -> dict[str, int]:
    return {
        "n_words": sum(len(text.split()) for text in texts),
        "n_bytes": sum(len(text.encode("utf-8")) for text in texts),
        "n_documents": len(texts),
    }


def _write_splits(folder: Path, documents: _Documents, tokenizer: PreTrainedTokenizerFast) -> None:
    meta = {}
    for split, texts in documents.items():
        tokens = _stream(texts, tokenizer)
        np.save(folder / f"{split}.npy", tokens)
        meta[split] = {"n_tokens": len(tokens), **_counts(texts)}
    write_json(folder / "meta.json", meta)


def _open(folder: Path, source: str, tokenizer: PreTrainedTokenizerFast | None) -> Corpus | None:
    """The cached corpus, or None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        splits = {}
        for split in _SPLITS:
            tokens = np.load(folder / f"{split}.npy", mmap_mode="r")
            counts = dict(meta[split])
            if tokens.shape != (counts.pop("n_tokens"),):
                return None
            splits[split] = Split(tokens, **counts)
        return Corpus(source, folder.name, load(folder / TOKENIZER_FILE) if tokenizer is None else tokenizer, **splits)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
