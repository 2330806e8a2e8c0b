"""What counts as text among files, and what a user may set about it."""

from dataclasses import dataclass
from pathlib import Path

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
    """

    text_column: str | None = None
    text_suffixes: tuple[str, ...] = PLAIN_SUFFIXES
    splits: str = "names"

    def kind(self, path: Path) -> str | None:
        """The ending that says how a file is read, without that of its compression: `.txt`, `.csv`, ...; None: no text."""
        suffixes = [suffix.lower() for suffix in path.suffixes]
        if suffixes and suffixes[-1] in COMPRESSIONS:
            suffixes.pop()
        last = suffixes[-1] if suffixes else ""
        return last if last in (*TABLE_SUFFIXES, *self.text_suffixes) else None
