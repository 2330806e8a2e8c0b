"""A small text, small corpora, and what their token streams say."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mu_sota.data.corpus import Corpus, Split, load_corpus

LINES = "".join(f"Line {i} says something about the number {i * i}, <unk> and <EOS>.\n" for i in range(400))


def small(source: Path | str, **options: Any) -> Corpus:
    return load_corpus(str(source), vocab_size=300, **options)


def splits(corpus: Corpus) -> dict[str, Split]:
    return {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}


def texts(corpus: Corpus) -> dict[str, Any]:
    """The documents of every split, read back from its token stream."""
    bos, eos = corpus.tokenizer.bos_token_id, corpus.tokenizer.eos_token_id
    documents = {}
    for name, split in splits(corpus).items():
        assert split.tokens[0] == bos
        assert split.tokens[-1] == eos
        ends = np.flatnonzero(split.tokens == eos)
        starts = [1, *(ends[:-1] + 1)]
        documents[name] = [
            corpus.tokenizer.decode(split.tokens[a:b].astype(int)) for a, b in zip(starts, ends, strict=True)
        ]
    return documents


def write_splits(folder: Path, names: tuple[str, ...] = ("train.txt", "valid.txt", "test.txt")) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_text(f"split {number}\n\nof this corpus", encoding="utf-8")
    return folder


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(documents)), encoding="utf-8")
    return path
