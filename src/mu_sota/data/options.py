"""The splits, what counts as text among files, and what a user may set about them. Nothing here takes time to load."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")

Documents = dict[str, list[str]]  # split -> the texts of its documents

PLAIN_SUFFIXES = (
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".log"),
    *(".py", ".js", ".ts", ".java", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs", ".rb", ".php", ".pl"),
    *(".sh", ".sql", ".r", ".jl", ".lua", ".swift", ".kt", ".scala", ".hs", ".ml"),
)
"""Files that are one document each, as they are, unless `text_suffixes` names others."""

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
"""Files of many documents, one a row or record."""

COMPRESSIONS = (".gz", ".zst", ".xz")
"""Endings that may follow any of the others."""


@dataclass(frozen=True)
class TextOptions:
    """How a text is read.

    Attributes:
        text_column: of tables and JSON records; None for `text`, or `messages`, or the only column with strings.
        text_suffixes: endings of files that are one document each.
        splits: `names` takes the splits that names of files and folders say, `content` splits all of it anew.
        overlap: `refuse` a held-out split that stands in the training text as a whole, or `allow` it.
        data_config: of a data set of the hub that has several.
        text_bytes: the most of the training text; what comes later is not read. None for all.
    """

    text_column: str | None = None
    text_suffixes: tuple[str, ...] = PLAIN_SUFFIXES
    splits: str = "names"
    overlap: str = "refuse"
    data_config: str | None = None
    text_bytes: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TextOptions":
        """From the settings of a run, as it has or records them; what they lack is as usual."""
        known = {field.name: settings[field.name] for field in fields(cls) if settings.get(field.name) is not None}
        if "text_suffixes" in known:
            known["text_suffixes"] = tuple(f".{suffix.lower().lstrip('.')}" for suffix in known["text_suffixes"])
        return cls(**known)

    def with_file(self, path: Path) -> "TextOptions":
        """The same, but a file that was named is text, whatever its ending."""
        if self.kind(path):
            return self
        plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
        return replace(self, text_suffixes=(*self.text_suffixes, plain.suffix.lower()))

    def kind(self, path: Path) -> str | None:
        """The ending that says how a file is read, not that of its compression: `.txt`, `.csv`, ...; None: no text."""
        suffixes = [suffix.lower() for suffix in path.suffixes]
        if suffixes and suffixes[-1] in COMPRESSIONS:
            suffixes.pop()
        last = suffixes[-1] if suffixes else ""
        return last if last in (*TABLE_SUFFIXES, *self.text_suffixes) else None
