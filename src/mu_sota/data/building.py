"""From documents to files of token ids, in constant memory; what a kill leaves is gone on with.

While it is built, a folder holds a plain file of ids for every split, to which is appended, and `state.json`, which
says how much of each is sound and how many pieces of the text that is. At the end the files become `.npy`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerFast

from mu_sota.common.files import write_json
from mu_sota.model.errors import InputError

from .options import SPLITS
from .survey import Tick
from .tokenizer import encode_batch, is_word_level

_BATCH = 2 * 2**20  # characters that are encoded at once
_SAVE_EVERY = 32 * 2**20  # characters between two states
_STATE_FILE = "state.json"
_LINES_A_BLOCK = 2**20
_LONG_LINE = 100  # characters; two texts that share so long a line share it for a reason


@dataclass
class Counts:
    """Of the text of a split."""

    n_words: int = 0
    n_bytes: int = 0
    n_documents: int = 0


@dataclass
class _State:
    """What is done: pieces of the text, and for each split its counts and the bytes of its files."""

    pieces: int = 0
    counts: dict[str, Counts] = field(default_factory=lambda: {split: Counts() for split in SPLITS})
    ids: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    lines: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    @classmethod
    def read(cls, file: Path) -> "_State":
        """From a file; a new one where there is none."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls()
        return cls(**content | {"counts": {split: Counts(**counts) for split, counts in content["counts"].items()}})

    def as_dict(self) -> dict[str, Any]:
        """For the file."""
        return {**vars(self), "counts": {split: vars(counts) for split, counts in self.counts.items()}}


class TokenFiles:
    """Writes the token streams of the splits, and the hashes of their long lines.

    The stream of a split begins with the tokenizer's beginning of text; every document is followed by the end of text.
    In a closed vocabulary of words, it begins with `<eos>`, which also stands for every end of line.

    Args:
        folder: where it is built; it may hold what a killed process has left.
        tokenizer: of the ids.
        tick: told about progress.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, tick: Tick) -> None:
        end = tokenizer.eos_token_id
        if end is None:
            raise InputError("The tokenizer has no end-of-text token, which separates documents: set its eos_token.")
        self.folder, self.tokenizer, self.tick = folder, tokenizer, tick
        self.end, self.by_words = end, is_word_level(tokenizer)
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
        self.state = _State.read(folder / _STATE_FILE)
        if any(not file.exists() or file.stat().st_size < size for file, size in self._sizes()):
            self.state = _State()  # what it says is not there
        for file, size in self._sizes():
            with file.open("ab") as appended:
                appended.truncate(size)
        if not self.state.pieces:
            first = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            for split in SPLITS:
                self._append(split, ".ids", np.array([first], self.dtype))

    def write(self, pieces: Iterator[tuple[str, str, bool]]) -> None:
        """Encode all pieces, as `divided_pieces` gives them, but for those that are done."""
        batch: list[tuple[str, str, bool]] = []
        size = since_saved = 0
        for number, (split, text, ends) in enumerate(pieces):
            if number < self.state.pieces:
                self.tick(len(text.encode()))
                continue
            batch.append((split, text, ends))
            size += len(text)
            if size >= _BATCH:
                self._encode(batch)
                since_saved += size
                batch, size = [], 0
                if since_saved >= _SAVE_EVERY:
                    self._save()
                    since_saved = 0
        if batch:
            self._encode(batch)
        self._save()

    def finish(self, fresh: Path) -> dict[str, dict[str, Any]]:
        """Write the files of token ids to another folder.

        Returns:
            For each split `n_tokens` and the counts.
        """
        about = {}
        for split in SPLITS:
            source = self.folder / f"{split}.ids"
            tokens = source.stat().st_size // self.dtype.itemsize
            with (fresh / f"{split}.npy").open("wb") as target, source.open("rb") as ids:
                header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (tokens,)}
                np.lib.format.write_array_header_1_0(target, header)
                shutil.copyfileobj(ids, target, 2**20)
            about[split] = {"n_tokens": tokens, **vars(self.state.counts[split])}
        return about

    def lines(self, split: str) -> np.ndarray:
        """The hashes of the long lines of a split, uint64."""
        return np.fromfile(self.folder / f"{split}.lines", np.uint64)

    def line_blocks(self, split: str) -> Iterator[np.ndarray]:
        """The same in blocks: the training text has too many to be held at once."""
        with (self.folder / f"{split}.lines").open("rb") as file:
            while len(block := np.fromfile(file, np.uint64, _LINES_A_BLOCK)):
                yield block

    def _encode(self, batch: list[tuple[str, str, bool]]) -> None:
        ids = encode_batch(self.tokenizer, [self._closed(text) if ends else text for _, text, ends in batch])
        streams: dict[str, list[np.ndarray]] = {}
        lines: dict[str, list[int]] = {}
        for (split, text, ends), piece in zip(batch, ids, strict=True):
            streams.setdefault(split, []).append(piece)
            if ends and not self.by_words:
                streams[split].append(np.array([self.end], np.uint32))
            n_bytes, counts = len(text.encode()), self.state.counts[split]
            counts.n_words += len(text.split())
            counts.n_bytes += n_bytes
            counts.n_documents += ends
            lines.setdefault(split, []).extend(
                xxhash.xxh3_64_intdigest(line.encode()) for line in text.split("\n") if len(line) >= _LONG_LINE
            )
            self.tick(n_bytes)
        for split, stream in streams.items():
            self._append(split, ".ids", np.concatenate(stream).astype(self.dtype))
            self._append(split, ".lines", np.array(lines[split], np.uint64))
        self.state.pieces += len(batch)

    def _closed(self, text: str) -> str:
        """The end of a document: where words are tokens, every line has its end."""
        return text + "\n" if self.by_words and not text.endswith("\n") else text

    def _sizes(self) -> list[tuple[Path, int]]:
        """The files, and how many bytes of each are done."""
        kinds = ((".ids", self.state.ids), (".lines", self.state.lines))
        return [(self.folder / f"{split}{kind}", done[split]) for kind, done in kinds for split in SPLITS]

    def _append(self, split: str, kind: str, values: np.ndarray) -> None:
        with (self.folder / f"{split}{kind}").open("ab") as file:
            file.write(values.tobytes())
        done = self.state.ids if kind == ".ids" else self.state.lines
        done[split] += values.nbytes

    def _save(self) -> None:
        for file, _ in self._sizes():
            with file.open("ab") as written:
                os.fsync(written.fileno())
        write_json(self.folder / _STATE_FILE, self.state.as_dict())
