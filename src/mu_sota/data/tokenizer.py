"""Text to token ids and back: byte-level BPE (the default), and the closed word vocabulary of published figures.

Both are `transformers` tokenizers over the `tokenizers` library. In corpus and user text nothing is ever parsed as a
special token: `<EOS>` typed by a user is five ordinary characters to the BPE. (In the word vocabulary `<unk>` and
`<eos>` are words of the corpus: alone between spaces they are their entries.)
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mu_sota.common.files import replacing
from mu_sota.common.outside import in_one_sentence, parse_json, read_text, require_files, user_path
from mu_sota.model.errors import InputError

TOKENIZER_FILE = "mu_sota_tokenizer.json"

_BPE_SPECIALS = {"pad_token": "<PAD>", "unk_token": "<UNK>", "bos_token": "<BOS>", "eos_token": "<EOS>"}
_WORD_SPECIALS = {"pad_token": "<eos>", "unk_token": "<unk>", "bos_token": "<eos>", "eos_token": "<eos>"}
_LINE_ENDS = normalizers.Replace("\n", " <eos> ")
_SMALLEST_BPE = len(_BPE_SPECIALS) + 256

_PIECE_CHARACTERS = 16_384
_PIECES_A_BATCH = 64
# Merges are counted within what stands between spaces. Where that does not end (DNA, base64), it would take hours; and
# no token that is worth having is longer.
_LONGEST_RUN = 256
_TOO_LONG_A_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1}}}")
_RUNS = re.compile(rf"\s*\S{{1,{_LONGEST_RUN}}}|\s+$")
# Both pre-tokenizers start a new pre-token wherever white space follows something else, and neither looks behind: text
# that is cut there has the same tokens as before.
_CUT = re.compile(r"\S(?=[ \n])")


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with `<PAD> <UNK> <BOS> <EOS>` as ids 0 to 3 and all 256 bytes.

    It has `vocab_size` entries, or fewer when the text runs out of pairs to merge. `decode(encode(text)) == text` for
    every text.

    Raises:
        InputError: `vocab_size` is below 260 (four special tokens and 256 bytes), or a text holds a lone surrogate.
    """
    if vocab_size < _SMALLEST_BPE:
        raise InputError(
            f"A BPE vocabulary of {vocab_size} entries is too small: four special tokens and 256 bytes need "
            f"{_SMALLEST_BPE}, so ask for at least that many."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_BPE_SPECIALS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((run for text in texts for piece in _pieces(text) for run in _runs(piece)), trainer)
    return _wrap(Tokenizer.from_str(_bare_json(backend)))


def train_words(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Collect the closed vocabulary of `texts`: every white-space word, `<unk>`, and `<eos>` for each end of line.

    Frequent words have small ids. The beginning-of-text, end-of-text and padding tokens are all `<eos>`, so that a
    softmax over the vocabulary compares with published word-level figures.

    Raises:
        InputError: a text holds a lone surrogate.
    """
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = _LINE_ENDS
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No `special_tokens` here: where the corpus has these words too, the trainer leaves holes among the ids.
    trainer = trainers.WordLevelTrainer(vocab_size=2**31, show_progress=False)
    backend.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    vocabulary = backend.get_vocab()
    for token in ("<unk>", "<eos>"):
        vocabulary.setdefault(token, len(vocabulary))
    backend.model = models.WordLevel(vocabulary, unk_token="<unk>")
    return _wrap(Tokenizer.from_str(_bare_json(backend)))


def is_word_level(tokenizer: PreTrainedTokenizerFast) -> bool:
    """True if tokens are words of a closed vocabulary, with an `<eos>` for every end of line."""
    return isinstance(tokenizer.backend_tokenizer.model, models.WordLevel)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Return the token ids of `text`, uint32 of shape (tokens,), without special tokens added or parsed.

    Raises:
        InputError: the text holds a lone surrogate.
    """
    return encode_batch(tokenizer, [text])[0]


def encode_batch(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """The same of several texts, on all cores; large ones in pieces, which gives exactly the same tokens.

    Raises:
        InputError: a text holds a lone surrogate.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    cut = _pieces if _cuts_exactly(backend) else lambda text: iter([_encodable(text)])
    pieces = ((number, piece) for number, text in enumerate(texts) for piece in cut(text))
    ids: list[list[np.ndarray]] = [[np.empty(0, np.uint32)] for _ in texts]
    while batch := list(islice(pieces, _PIECES_A_BATCH)):
        encodings = backend.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (number, _), encoding in zip(batch, encodings, strict=True):
            ids[number].append(np.array(encoding.ids, np.uint32))
    return [np.concatenate(parts) for parts in ids]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: str | os.PathLike[str]) -> None:
    """Write the tokenizer to one JSON file in the format of the `tokenizers` library."""
    with replacing(path) as temporary:
        temporary.write_text(_bare_json(tokenizer.backend_tokenizer), encoding="utf-8")


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load a tokenizer from the file of `save_tokenizer`, or from a folder with that file or a Hugging Face tokenizer.

    Raises:
        InputError: there is no tokenizer at `path`, or its file cannot be read as one.
    """
    path = Path(path)
    failure, remedy = (
        f"The tokenizer in {path} cannot be loaded",
        "give a folder that `save_pretrained` wrote, or a run's",
    )
    with in_one_sentence(failure, remedy):
        if path.is_dir():
            require_files(path)
            if (path / "tokenizer.json").is_file() and not (path / TOKENIZER_FILE).is_file():
                return _tried(PreTrainedTokenizerFast.from_pretrained(path))
            path = path / TOKENIZER_FILE
        if not os.path.lexists(path):
            raise InputError(f"No tokenizer at {path}: give a {TOKENIZER_FILE} or a folder with a tokenizer.json.")
    with in_one_sentence(f"{path} is not a tokenizer file", f"give the {TOKENIZER_FILE} of a training run"):
        text = read_text(path)
        parse_json(text)  # which the library trusts to be shallow
        return _tried(_wrap(Tokenizer.from_str(text), path))


def trained_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer by its file or folder, or by its name on the Hugging Face hub, with its own special tokens.

    Raises:
        InputError: there is none, it is not a fast one, or it has no end-of-text token.
    """
    path = user_path(name)
    tokenizer = load_tokenizer(path) if os.path.lexists(path) else _from_hub(name)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {name} has no end-of-text token, which separates documents: set its eos_token, and save it."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # a batch of prompts goes on at the right
    return tokenizer


def _from_hub(name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # or it would ask, and wait
    except Exception as error:  # whatever the hub and two libraries raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"There is no tokenizer {name!r}: give bpe, word, the folder of a trained tokenizer, or the name of one on "
            f"the Hugging Face hub ({reason})."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"The tokenizer {name} is not a fast one ({type(tokenizer).__name__}): give one that is.")
    return tokenizer


def _tried(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """What is odd in its files may only be raised when it is used."""
    ids = encode(tokenizer, "a text\n").tolist()
    tokenizer.decode(ids, skip_special_tokens=True)
    tokenizer("a text", return_tensors="np")
    return tokenizer


def _wrap(bare: Tokenizer, origin: Path | None = None) -> PreTrainedTokenizerFast:
    """Name the special tokens among the vocabulary, by the type of the model."""
    specials = _WORD_SPECIALS if isinstance(bare.model, models.WordLevel) else _BPE_SPECIALS
    missing = [token for token in dict.fromkeys(specials.values()) if bare.token_to_id(token) is None]
    if missing:
        raise InputError(
            f"The vocabulary of {origin} lacks {', '.join(missing)}: give a {TOKENIZER_FILE} that this program wrote."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # a batch of prompts goes on at the right
        **specials,
    )


def _bare_json(backend: Tokenizer) -> str:
    """The tokenizer's JSON, its special tokens left as plain vocabulary entries.

    An entry under `added_tokens` would be parsed out of text by whoever loads the file with `tokenizers` alone.
    """
    content: dict[str, Any] = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in vocabulary]
    return json.dumps(content, ensure_ascii=False)


def _cuts_exactly(backend: Tokenizer) -> bool:
    """True for the two kinds of tokenizer that are trained here: their texts may be cut at `_CUT`."""
    before = backend.pre_tokenizer
    if isinstance(before, pre_tokenizers.ByteLevel):
        return backend.normalizer is None and before.use_regex and not before.add_prefix_space
    return isinstance(before, pre_tokenizers.WhitespaceSplit) and repr(backend.normalizer) == repr(_LINE_ENDS)


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of about `_PIECE_CHARACTERS` that can be tokenized each by itself."""
    _encodable(text)
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _PIECE_CHARACTERS)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def _runs(piece: str) -> Iterable[str]:
    """A piece of text for training, cut where it has no space for too long."""
    return _RUNS.findall(piece) if _TOO_LONG_A_RUN.search(piece) else [piece]


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text has the lone surrogate {text[error.start]!r} at character {error.start}, which UTF-8 cannot "
            "hold: decode the text again as UTF-8, or remove that character."
        ) from None
    return text
