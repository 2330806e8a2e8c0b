"""The one exception a user is meant to read, and phrases for its sentences."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the value, what was expected and how to fix it. The command line prints it
    without a traceback and exits with status 2.
    """


def cut(text: str, most: int = 40) -> str:
    """A text that cannot be used, short enough for the sentence that says so."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """`did you mean 'dropout'?` for a name that is close to a known one, else None."""
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else None
