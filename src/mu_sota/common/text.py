"""Phrases that several files print or record."""

import math
import os
import shlex
import unicodedata
from datetime import datetime, timezone

_READ_AS_THEY_ARE = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"

RULE = "=" * 80
"""The line above and below a heading."""


def duration(seconds: float) -> str:
    """Seconds as 45 s, 12 min 30 s or 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def timestamp() -> str:
    """The time now in UTC, as 2026-01-31T12:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def one_line(error: BaseException) -> str:
    """Kind and message of an error, in one line that fits a sentence."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message if len(message) <= 160 else message[:157] + '...'}"


def readable(value: float | None, digits: int = 2) -> str:
    """A figure for people: 5,920.99 or 1.77e10; None is what no number can hold."""
    if value is None or not math.isfinite(value):
        return "beyond all numbers"
    return f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}".replace("e+", "e")


def visible(text: str, spaces: bool = True) -> str:
    """Write characters that drive a terminal, turn the direction of writing or have no shape as their codes.

    The codes are `\\xNN`, `\\uNNNN` and `\\UNNNNNNNN`. All letters and emoji stay.

    Args:
        spaces: True for a token, which then shows every character: spaces, line ends and tabs are `·`, `⏎` and `⇥`.
            False for a text to read: these stay, and so do the two joiners of emoji, Persian and Hindi.
    """
    if spaces:
        text = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(
        character if character.isprintable() or (not spaces and _needed_to_read(character)) else _code(character)
        for character in text
    )


def as_word(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command that is shown: pasted into a shell, it is this path again, whatever is in it."""
    text = str(path)
    if text.startswith("-"):  # which would be an option
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    safe = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(text)
    )
    return f"$'{safe}'"


def _needed_to_read(character: str) -> bool:
    return character in _READ_AS_THEY_ARE or unicodedata.category(character) == "Zs"  # spaces of all widths


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
