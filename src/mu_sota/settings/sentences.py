"""The sentences about settings that cannot be used."""

from typing import Any

from pydantic import ValidationError

from mu_sota.model.errors import InputError, cut, suggestion

_SHOWN = 60  # characters of a name or value that cannot be used


def no_such_setting(key: str, known: list[str]) -> str:
    """Why a name is refused, with the nearest name that is known."""
    hint = suggestion(str(key), known) or f"the settings are: {', '.join(known)}"
    return f"there is no setting {cut(repr(key), _SHOWN)}; {hint}"


def refuse_truth_value(key: str, value: Any) -> None:
    """No setting is true or false, and `true` would pass for 1.

    Raises:
        InputError: the value is a truth value.
    """
    if isinstance(value, bool):
        raise InputError(f"the setting {key} is {value!r}: input should be a number or a text, not true or false")


def sentence_of(error: ValidationError, key: str = "") -> str:
    """The first error, with its value and what was expected."""
    first = error.errors()[0]
    name = key or ".".join(str(part) for part in first["loc"])
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"the setting {name} is {cut(repr(first['input']), _SHOWN)}: {reason}"
