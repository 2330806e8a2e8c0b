"""From the name or path of a text to three splits of token ids, cached by content, or prepared in a folder to carry.

The token stream of a split is

* with the BPE: `<BOS>`, then every document followed by `<EOS>`;
* with the word vocabulary: one `<eos>`, then the words of every document with `<eos>` for each end of line (a document
  that does not end in one gets one).

The first token is context only. Every other token is predicted exactly once by `EvalWindows`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, NonNegativeInt, TypeAdapter
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from mu_sota.common.bars import seconds_between_drawings
from mu_sota.common.files import (
    cache_folder,
    checksum,
    has_settled,
    read_sealed,
    replacing,
    stamp_of,
    write_sealed,
)
from mu_sota.common.locks import alone
from mu_sota.common.outside import require_file, user_path
from mu_sota.model.errors import InputError

from .building import TokenFiles
from .documents import Source, with_ends
from .options import HELD_OUT, SPLITS, TextOptions
from .overlap import Overlap, document_overlap, line_overlap, refuse_equal_documents, refuse_equal_lines, repeats
from .sources import NAMES, find_source
from .survey import Survey, Tick, divided_pieces, survey
from .tokenizer import TOKENIZER_FILE, load_tokenizer, save_tokenizer, train_bpe, train_words, trained_tokenizer

_CACHE_FORMAT = 2  # raise it when documents, splits or token streams change
_META_FILE = "meta.json"
_TOKENIZER_FOLDER = "tokenizer"  # of a trained one, as `transformers` saves it
_BPE_ENTRIES = 50_000
_TOKENIZER_BYTES = 256 * 2**20  # of the training text; more changes few of its entries

TokenizerChoice = str | PreTrainedTokenizerFast
"""bpe or word to train one, a trained tokenizer, or its folder or name on the hub."""


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
    """Three splits, and the tokenizer of their ids.

    `fingerprint` changes with the text, the tokenizer and the way the text is split. `asked` is what was asked
    for: `tokenizer`, and for a bpe `vocab_size`, its most entries; nothing where the tokenizer was given. `about` says
    what was taken as what and what was found in it: `lines` for people, `repeats` (training documents that are equal to
    an earlier one), and for each held-out split the `overlap` with the training split.
    """

    source: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerFast
    train: Split
    validation: Split
    test: Split
    asked: dict[str, Any] = field(default_factory=dict, kw_only=True)
    about: dict[str, Any] = field(default_factory=dict, kw_only=True)


def load_corpus(
    source: str,
    *,
    tokenizer: TokenizerChoice | None = None,
    vocab_size: int | None = None,
    options: TextOptions | None = None,
    cache_dir: Path | None = None,
) -> Corpus:
    """Read, split and tokenize a corpus, and keep it in the cache; or open it from there.

    `source` is one of

    * `pydocs`: English prose that comes with Python itself: the language reference of `pydoc` and the docstrings of
      the standard library. A document is a topic or a module.
    * `wikitext-2`: the raw WikiText-2 of the Hugging Face hub, one document a split.
    * a folder that `save_corpus` (`mu-sota prepare`) wrote: its tokens, as they are.
    * any other file or folder, read as docs/data.md says: splits by the conventions of `datasets`, and what they leave
      open by content, 90/5/5 % of the bytes.
    * a data set of the Hugging Face hub, as OWNER/NAME.

    `tokenizer` is trained on the training split, with up to `vocab_size` entries for "bpe" and every word for "word";
    or it is a trained tokenizer, used as it is. Left out, they are "bpe" and 50,000; of a prepared folder, what it was
    prepared with. `cache_dir` defaults to the environment variable MU_SOTA_CACHE, then to ~/.cache/mu_sota.

    Progress and remarks are printed to stderr while the text is read for the first time. A call that was killed is gone
    on with by the next.

    Raises:
        InputError: the source does not exist or cannot be read, holds no text, or cannot be split; a held-out split
            stands in the training text; the tokenizer is unknown or has no end-of-text token; the cache cannot be
            written; a prepared folder is damaged, or was prepared with another tokenizer.
    """
    prepared = user_path(source)
    cache = cache_dir or cache_folder()
    if source not in NAMES and _is_prepared(prepared):
        opened = _open(prepared, source, cache)
        _require_tokenizer(opened, tokenizer, vocab_size)
        return opened
    options = options or TextOptions()
    tokenizer = tokenizer or "bpe"
    asked = _asked(tokenizer, vocab_size)
    if isinstance(tokenizer, str) and tokenizer not in ("bpe", "word"):
        tokenizer = trained_tokenizer(tokenizer)
    vocab_size = _BPE_ENTRIES if vocab_size is None else vocab_size
    try:
        found = find_source(source, options, cache)
        described = [
            _CACHE_FORMAT,
            found.fingerprint,
            options.text_bytes,
            _tokenizer_fingerprint(tokenizer, vocab_size),
        ]
        folder = cache / hashlib.sha256(json.dumps(described).encode()).hexdigest()
        if (corpus := _cached(folder, source, tokenizer, asked)) is not None:
            return _allowed(corpus, options)
        cache.mkdir(parents=True, exist_ok=True)
        with alone(Path(f"{folder}.lock"), _say_waiting):  # of several processes, one builds and the others wait
            if (corpus := _cached(folder, source, tokenizer, asked, say=True)) is None:
                _build(found, source, folder, tokenizer, vocab_size, options)
                corpus = _open(folder, source, cache, tokenizer, asked)
    except OSError as error:
        raise InputError(
            f"The cache {cache} cannot be written ({error.strerror or error}): free space, fix its permissions, or "
            "set MU_SOTA_CACHE to another folder."
        ) from error
    return _allowed(corpus, options)


def _say_waiting(holder: str) -> None:
    print(f"Another process makes these tokens ({holder}): waiting for it.", file=sys.stderr)


def _cached(
    folder: Path, source: str, tokenizer: TokenizerChoice, asked: dict[str, Any], say: bool = False
) -> Corpus | None:
    """The corpus in a folder of the cache, if it is there and sound."""
    try:
        return _open(folder, source, folder.parent, tokenizer, asked)
    except InputError:
        if say and folder.exists():
            print(f"The tokens in {folder} are damaged: they are made again.", file=sys.stderr)
        return None


def _allowed(corpus: Corpus, options: TextOptions) -> Corpus:
    """The corpus, unless a held-out split is no test of anything."""
    if options.overlap != "allow":
        for split, overlap in corpus.about.get("overlap", {}).items():
            refuse_equal_lines(corpus.source, split, Overlap(**overlap))
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
        if corpus.asked["tokenizer"] in ("bpe", "word"):
            save_tokenizer(corpus.tokenizer, temporary / TOKENIZER_FILE)
        else:
            corpus.tokenizer.save_pretrained(temporary / _TOKENIZER_FOLDER)
        about = {}
        for name in SPLITS:
            split: Split = getattr(corpus, name)
            mapped: Any = split.tokens  # all of it would count as memory if it were written from there
            shutil.copyfile(mapped.filename, temporary / f"{name}.npy")
            counts = {"n_words": split.n_words, "n_bytes": split.n_bytes, "n_documents": split.n_documents}
            about[name] = {"n_tokens": len(split.tokens), **counts}
        named = {"fingerprint": corpus.fingerprint, "asked": corpus.asked, "about": corpus.about}
        _write_meta(temporary, named | about)


def load_file(path: Path, tokenizer: PreTrainedTokenizerFast, options: TextOptions | None = None) -> Split:
    """All of one file as a single split, to evaluate on.

    Raises:
        InputError: the file cannot be read, or holds no text.
    """
    from .readers import read_documents

    def remark(text: str) -> None:
        print(text, file=sys.stderr)

    def pieces() -> Iterator[tuple[str, str, bool]]:
        for document in read_documents(path, (options or TextOptions()).with_file(path), remark):
            yield from (("test", piece, ends) for piece, ends in with_ends(document))

    with tempfile.TemporaryDirectory() as folder:
        files = TokenFiles(Path(folder), tokenizer, lambda _: None)
        files.write(pieces())
        counts = files.state.counts["test"]
        if not counts.n_documents:
            raise InputError(f"{path} holds no text: give a file that does.")
        return Split(np.fromfile(files.folder / "test.ids", files.dtype), **vars(counts))


def _tokenizer_fingerprint(tokenizer: TokenizerChoice, vocab_size: int) -> list[object]:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return [tokenizer.backend_tokenizer.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return ["bpe", vocab_size] if tokenizer == "bpe" else [tokenizer]


def _build(
    found: Source, source: str, folder: Path, tokenizer: TokenizerChoice, vocab_size: int, options: TextOptions
) -> None:
    """Read the text twice: to know it, and to tokenize it. A folder beside the other keeps what is done."""
    at_work = folder.with_name(f"{folder.name}.building")
    at_work.mkdir(parents=True, exist_ok=True)
    with _progress("Reading", found.n_bytes) as tick:
        known = survey(found, options.text_bytes, tick)
    if not known.total_bytes:
        raise InputError(f"{source} holds no text: give a file or folder that does.")
    for split in SPLITS:
        if not len(known.hashes_of(split)) and not _is_cut(known, split):
            raise _empty(source, split)
    if options.overlap != "allow":
        refuse_equal_documents(source, known)

    def pieces() -> Iterator[tuple[str, str, bool]]:
        return divided_pieces(found, known, options.text_bytes)

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer = _trained(at_work / TOKENIZER_FILE, tokenizer, vocab_size, known, pieces())
    try:
        with _progress("Tokenizing", known.total_bytes) as tick:
            files = TokenFiles(at_work, tokenizer, tick)
            files.write(pieces())
    except KeyboardInterrupt:
        print(f"Stopped. What is done is kept in {at_work}: the same command goes on from there.", file=sys.stderr)
        raise
    for split, counts in files.state.counts.items():
        if not counts.n_documents:
            raise _empty(source, split)
    with replacing(folder) as temporary:
        temporary.mkdir()
        if (at_work / TOKENIZER_FILE).exists():
            shutil.copyfile(at_work / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
        about = files.finish(temporary)
        _write_meta(temporary, about | {"about": _about(found, known, files)})
    shutil.rmtree(at_work, ignore_errors=True)


def _trained(
    file: Path, kind: TokenizerChoice, vocab_size: int, known: Survey, pieces: Iterator[tuple[str, str, bool]]
) -> PreTrainedTokenizerFast:
    """The tokenizer of a text, from the file if it is there: of every piece of the training text, or of every n-th."""
    with contextlib.suppress(InputError):
        return load_tokenizer(file)
    training: Iterator[str] = (text for split, text, _ in pieces if split == "train")
    every = -(-known.total_bytes // _TOKENIZER_BYTES)
    if every > 1 and kind == "bpe":
        print(f"The tokenizer is trained on one of every {every} parts of the training text.", file=sys.stderr)
        training = itertools.islice(training, 0, None, every)
    with _progress("Training the tokenizer", known.total_bytes // (every if kind == "bpe" else 1)) as tick:

        def counted() -> Iterator[str]:
            for text in training:
                yield text
                tick(len(text.encode()))

        made = train_words(counted()) if kind == "word" else train_bpe(counted(), vocab_size)
    save_tokenizer(made, file)
    return made


def _is_cut(known: Survey, split: str) -> bool:
    """Whether a document is cut of which a part goes to the split."""
    division = known.division
    return division is not None and bool((division.places == -1).any()) and split in ("train", *division.held_out)


def _empty(source: str, split: str) -> InputError:
    return InputError(
        f"{source} gives an empty {split} split: give more text, or a folder with train.txt, valid.txt and test.txt."
    )


def _about(found: Source, known: Survey, files: TokenFiles) -> dict[str, Any]:
    """What `Corpus.about` holds."""
    overlap = {}
    for split in HELD_OUT:
        lines = files.lines(split)
        overlap[split] = Overlap(
            *document_overlap(known, split), line_overlap(lines, files.line_blocks("train")), len(lines)
        )
    return {
        "lines": found.lines + _division_lines(known) + known.remarks,
        "repeats": repeats(known),
        "overlap": {split: asdict(found) for split, found in overlap.items()},
    }


def _division_lines(known: Survey) -> list[str]:
    """How the text was divided, where names do not say it."""
    if known.division is None:
        return []
    parts = " and ".join(f"5 % for {split}" for split in known.division.held_out)
    if known.division.cut_all:
        return [f"Divided by content: {parts}, from the end of every document, since few or equal ones give no split."]
    return [f"Divided by content: {parts} of its bytes."]


@contextlib.contextmanager
def _progress(what: str, n_bytes: int | None) -> Iterator[Tick]:
    """A bar on stderr, for what takes longer than two seconds."""
    with tqdm(
        total=n_bytes, desc=what, unit="B", unit_scale=True, delay=2, mininterval=seconds_between_drawings(), ncols=79
    ) as bar:
        yield bar.update


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """`meta.json`, with the checksums of all that is in the folder, and of its own."""
    write_sealed(folder / _META_FILE, meta | {"checksums": {name: checksum(folder / name) for name in _files(folder)}})


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _open(
    folder: Path,
    source: str,
    cache: Path,
    tokenizer: TokenizerChoice | None = None,
    asked: dict[str, Any] | None = None,
) -> Corpus:
    """The corpus in a folder of the cache, or, where it is not said what is `asked` for, in a prepared one.

    Files with the stamps that they had when their checksums were right are not read for these again.

    Raises:
        InputError: a file is missing or damaged.
    """
    file = folder / _TOKENIZER_FOLDER
    try:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            file = file if file.is_dir() else folder / TOKENIZER_FILE
            tokenizer = load_tokenizer(file)
        file = folder / _META_FILE
        meta = read_sealed(file)
        counts = {name: TypeAdapter(dict[str, NonNegativeInt]).validate_python(meta[name]) for name in SPLITS}
        _About.model_validate(meta["about"])
        known = _files(folder)
        memory = cache / "verified" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"
        verified, sound = _verified(memory), {}
        for name, expected in meta["checksums"].items():
            file = folder / name
            stamp = stamp_of(file.stat())
            settled = has_settled(stamp)  # by the time before it is read
            # The system's own files say that they are empty, and some wait for what may never come.
            is_file = name in known and file.stat().st_size
            if not is_file or (verified.get(name) != [expected, *stamp] and checksum(file) != expected):
                raise ValueError("its bytes are other than those that were written")
            if settled:
                sound[name] = [expected, *stamp]
        if sound != verified:
            with contextlib.suppress(OSError):  # where nothing can be remembered, all is read each time
                write_sealed(memory, sound)
        fingerprint, asked = (meta["fingerprint"], dict(meta["asked"])) if asked is None else (folder.name, asked)
        splits = {}
        for name in SPLITS:
            file = folder / f"{name}.npy"
            require_file(file, most=None)
            tokens = np.load(file, mmap_mode="r")
            if tokens.shape != (counts[name].pop("n_tokens"),):
                raise ValueError("it holds another number of tokens than its meta.json says")
            if tokens.dtype.kind != "u" or tokens.max() > max(tokenizer.get_vocab().values()):
                raise ValueError("it holds what is no token of its tokenizer")
            splits[name] = Split(tokens, **counts[name])
    except Exception as error:  # whatever odd content provokes
        raise InputError(
            f"{file} is {'damaged' if file.exists() else 'missing'}: copy the prepared folder again, or write a new "
            "one with mu-sota prepare."
        ) from error
    return Corpus(source, fingerprint, tokenizer, **splits, asked=asked, about=meta["about"])


class _About(BaseModel):
    """The types in `Corpus.about`, which a prepared folder brings from elsewhere."""

    lines: list[str] = []
    repeats: int = 0
    overlap: dict[str, dict[str, int]] = {}


def _verified(memory: Path) -> dict[str, Any]:
    """What is remembered of the files of a folder: the checksum and the stamp of each that was found sound."""
    try:
        return read_sealed(memory)
    except (OSError, ValueError):
        return {}


def _is_prepared(folder: Path) -> bool:
    """True if a folder holds tokens, be it damaged: it is never taken for text."""
    try:
        return any((folder / f"{name}.npy").exists() for name in SPLITS)
    except OSError:  # which `find_source` will name
        return False


def _asked(tokenizer: TokenizerChoice, vocab_size: int | None) -> dict[str, Any]:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return {}
    return {"tokenizer": tokenizer} | ({"vocab_size": vocab_size or _BPE_ENTRIES} if tokenizer == "bpe" else {})


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
