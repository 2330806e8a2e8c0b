"""Which column of a table holds the texts, and what text a value is."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mu_sota.model.errors import InputError, cut

from .options import TextOptions


def choose_column(
    path: Path | str, options: TextOptions, names: list[str], texts_in: list[str], tell: Callable[[str], None]
) -> str:
    """The column to read, of those there are and those that hold texts."""
    if (column := options.text_column) is not None:
        if column not in names:
            raise InputError(
                f"{path} has no column `{column}`, only {listed(names)}: name one of these with --set text_column=..."
            )
        return column
    for column in ("text", "messages"):
        if column in names:
            return column
    if len(texts_in) != 1:
        which = f"{listed(texts_in)} may hold the texts" if texts_in else "none of its columns holds texts"
        raise InputError(
            f"{path} has no column `text`, only {listed(names)}, and {which}: say which to read with --set "
            "text_column=..."
        )
    tell(f"{path} has no column `text`: column `{cut(texts_in[0])}` was read, the only one with texts.")
    return texts_in[0]


def require_distinct(path: Path | str, names: list[str]) -> None:
    if double := [name for name, count in Counter(names).items() if name and count > 1]:
        raise InputError(f"{path} has more than one column `{cut(double[0])}`: rename all but one.")


def listed(names: Iterable[str]) -> str:
    return cut(", ".join(f"`{name}`" for name in names), 200) or "empty records"


def all_texts(values: list[object], *, numbers: bool) -> bool:
    """True if the values are texts, but for nulls and blanks; with `numbers`, a text that is a number is none."""
    values = [value for value in values if value not in (None, "")]
    return bool(values) and all(
        _is_chat(value) or (isinstance(value, str) and not (numbers and _is_number(value))) for value in values
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_turn(message) is not None for message in value)


def _turn(message: object) -> tuple[str, str] | None:
    """Role and content of a chat message."""
    if isinstance(message, dict):
        for role, content in (("role", "content"), ("from", "value")):
            if isinstance(message.get(role), str) and isinstance(message.get(content), str):
                return message[role], message[content]
    return None


def text_of(path: Path | str, place: str, column: str, value: object) -> str | None:
    """A text as it is, chat messages as `role: content` with a blank line between them, None for null."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and (not value or isinstance(value[0], dict)):
        turns = []
        for number, message in enumerate(value, start=1):
            if (turn := _turn(message)) is None:
                raise InputError(
                    f"{path}, {place}: message {number} of `{column}` is no role and content, both strings: give "
                    '[{"role": "user", "content": "..."}, ...].'
                )
            turns.append(": ".join(turn))
        text = "\n\n".join(turns)
    else:
        raise InputError(
            f"{path}, {place}: `{column}` is of type {type(value).__name__}: put the document there as a string, or "
            "name another column with --set text_column=..."
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}, {place}: `{column}` escapes the lone surrogate {text[error.start]!r}, which is not a "
                "character: remove it."
            ) from None
    return text
