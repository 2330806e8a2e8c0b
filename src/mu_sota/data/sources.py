"""From the name or path of a text to its documents: `pydocs`, `wikitext-2`, a file or a folder."""

import platform
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mu_sota.model.errors import InputError

from .pydocs import read_pydocs
from .readers import SUFFIXES, digest, read_file, unreadable
from .splits import SPLITS, Documents, split_documents

_SPLIT_STEMS = {"train": ("train",), "validation": ("valid", "validation", "val", "dev"), "test": ("test",)}
_SOURCES = (
    "`pydocs`, `wikitext-2`, or the path of a .txt, .jsonl or .parquet file, of a folder of them or of a prepared one"
)
NAMES = ("pydocs", "wikitext-2")


@dataclass(frozen=True)
class Source:
    """A text that exists: a list that json can write and that changes with the text, and how to read the documents."""

    fingerprint: list[object]
    read: Callable[[], Documents]


def require_source(source: str) -> None:
    """Refuse a text that does not exist; nothing is read.

    Raises:
        InputError: there is no such name, file or folder.
    """
    if source in NAMES:
        return
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise unreadable(path, error) from error
    if not exists:
        raise InputError(f"There is no data named {str(source)!r}, nor a file or folder of that name: give {_SOURCES}.")


def find_source(source: str) -> Source:
    """Find a text by its name or path, as `load_corpus` documents them; nothing is read yet but for the fingerprint.

    Raises:
        InputError: there is no such name, file or folder, it cannot be read, or a folder does not have all its splits.
    """
    if source == "pydocs":
        library = Path(sysconfig.get_paths()["stdlib"])
        return Source(["pydocs", platform.python_version(), str(library)], lambda: read_pydocs(library))
    if source == "wikitext-2":
        return Source(["wikitext-2-raw-v1"], _read_wikitext)
    require_source(source)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _files_to_split(path.parent, [path])
    except OSError as error:
        raise unreadable(path, error) from error
    raise InputError(f"{path} is neither a file nor a folder: give {_SOURCES}.")


def _folder(folder: Path) -> Source:
    by_split = {split: _files_of_split(folder, split) for split in SPLITS}
    if any(by_split.values()):
        for split, files in by_split.items():
            if not files:
                raise InputError(
                    f"{folder} has a file for one split but none for {split}: add {_SPLIT_STEMS[split][0]}.txt (or "
                    ".jsonl, .parquet), or give one file to have it split."
                )
        return Source(
            [[split, [digest(file) for file in files]] for split, files in by_split.items()],
            lambda: {split: _documents(files) for split, files in by_split.items()},
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder} holds no {', '.join(SUFFIXES)} file: give a folder that does.")
    return _files_to_split(folder, files)


def _files_to_split(folder: Path, files: list[Path]) -> Source:
    return Source(
        [[file.relative_to(folder).as_posix(), digest(file)] for file in files],
        lambda: split_documents(_documents(files)),
    )


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The file of a split, or its numbered shards (train-00000-of-00002.parquet, ...)."""
    stems, suffixes = "|".join(_SPLIT_STEMS[split]), "|".join(map(re.escape, SUFFIXES))
    pattern = re.compile(rf"({stems})(-\d+-of-\d+)?({suffixes})", re.IGNORECASE)
    found = sorted((path, match) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))
    if len({(match[1], match[2] is None, match[3]) for _, match in found}) > 1:
        raise InputError(
            f"{folder} has more than one {split} file ({', '.join(path.name for path, _ in found)}): keep one."
        )
    return [path for path, _ in found]


def _documents(files: list[Path]) -> list[str]:
    return [text for file in files for text in read_file(file)]


def _read_wikitext() -> Documents:
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
