"""Data sets of the Hugging Face hub, by name. What they have is asked of the library `datasets`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from mu_sota.model.errors import InputError, cut

from .columns import all_texts, choose_column
from .documents import Source, Tell
from .options import SPLITS, Documents, TextOptions
from .readers import documents_of_rows

_SECONDS = 10  # to wait for an answer
_SHOWN = 300  # characters of what a library says


def hub_source(name: str, options: TextOptions) -> Source:
    """A data set by OWNER/NAME, at the commit that the hub has now.

    With `text_bytes` its text is streamed, and no more is loaded than is read; else `datasets` keeps a copy.

    Raises:
        InputError: there is none of that name, or the hub does not answer; the reason is in the sentence.
    """
    import datasets
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(name, timeout=_SECONDS).sha
        had = datasets.get_dataset_split_names(name, options.data_config, revision=revision)
    except Exception as error:  # of the network, of the hub, of the data set
        reason = cut(" ".join(str(error).split()), _SHOWN)
        raise InputError(
            f"There is no file or folder {name}, and no data set of that name can be had from the Hugging Face hub "
            f"({reason}): correct --data, or set data_config where it has several."
        ) from error
    splits = [split for split in SPLITS if split in had]
    if "train" not in splits:
        raise InputError(f"{name} has no train split (its splits: {', '.join(had)}): give another data set.")
    left_out = [split for split in had if split not in SPLITS]
    lines = [f"{name} at {str(revision)[:12]}: {', '.join(splits)}" + (f"; not {', '.join(left_out)}" * bool(left_out))]
    parts = {split: partial(_documents, name, str(revision), split, options) for split in splits}
    return Source(["hub", name, revision, options.data_config, options.text_column], dict(parts), None, lines)


def _documents(name: str, revision: str, split: str, options: TextOptions, tell: Tell) -> Iterator[Iterator[str]]:
    """The documents of a split, row by row."""
    yield from documents_of_rows(name, _rows(name, revision, split, options, tell), tell)


def _rows(name: str, revision: str, split: str, options: TextOptions, tell: Tell) -> Iterator[tuple[str, str, object]]:
    import datasets

    streaming = options.text_bytes is not None
    rows: Any = datasets.load_dataset(name, options.data_config, split=split, revision=revision, streaming=streaming)
    column = ""
    for number, row in enumerate(rows, start=1):
        if not column:
            texts_in = [key for key, value in row.items() if all_texts([value], numbers=False)]
            column = choose_column(name, options, list(row), texts_in, tell)
        yield f"{split}, row {number:,}", column, row[column]


def read_wikitext() -> Documents:
    """WikiText-2 of the hub, one document a split, or of the copy that `datasets` has kept.

    Raises:
        InputError: neither can be had.
    """
    import datasets.config
    from huggingface_hub import constants, get_session

    offline, reason = datasets.config.HF_HUB_OFFLINE, ""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:
        reason = f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
        # `load_dataset` would retry for half a minute; when it believes to be offline, it opens its local copy at once.
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
    return {split: ["".join(splits[split]["text"])] for split in SPLITS}
