"""What `local_text.yaml` asks for: the documents of a local file, and what they are counted in.

Documents and counts are those of `mu-sota evaluate`: a .txt file is one document, a line of a .jsonl file is one (its
field "text"), blank documents are left out; words are what white space separates, bytes are UTF-8.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def documents(text: str, **_: Any) -> dict[str, Dataset]:
    """The documents of the file `text`; the harness also passes the arguments of the model."""
    path = Path(text).expanduser()
    content = path.read_bytes()  # as bytes, because reading text would change ends of lines
    if path.suffix.lower() == ".jsonl":
        texts = [json.loads(line)["text"] for line in content.split(b"\n") if line.strip()]
    elif path.suffix.lower() == ".txt":
        texts = [content.decode("utf-8")]
    else:
        raise ValueError(f"{path} is neither a .txt nor a .jsonl file")
    texts = [text for text in texts if text and not text.isspace()]
    if not texts:
        raise ValueError(f"{path} holds no text")
    return {"test": Dataset.from_dict({"text": texts})}


def target(document: dict[str, str]) -> str:
    """What is to be predicted: the document as it is. A template would read "[...]" as a list."""
    return document["text"]


def results(document: dict[str, str], log_likelihoods: list[float]) -> dict[str, tuple[float, int]]:
    """A (log-likelihood, count) pair for each figure; the harness adds both up over the documents."""
    (log_likelihood,) = log_likelihoods
    words, size = len(document["text"].split()), len(document["text"].encode("utf-8"))
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
        "bits_per_byte": (log_likelihood, size),
    }
