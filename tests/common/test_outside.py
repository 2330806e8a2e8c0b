"""What comes from outside: one sentence for whatever goes wrong, and no more than is said."""

import os
from pathlib import Path

import pytest

from mu_sota.common.outside import MOST_BYTES, in_one_sentence, parse_json, read_text, user_path
from mu_sota.model.errors import InputError


class PanicException(BaseException):
    """What libraries in Rust raise."""


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError(), MemoryError(), PanicException("oh"), OSError("no")])
def test_whatever_is_raised_becomes_one_sentence(error: BaseException) -> None:
    said = r"^the record x is damaged \(.+\); make it again$"
    with pytest.raises(InputError, match=said) as raised, in_one_sentence("the record x is damaged", "make it again"):
        raise error
    assert raised.value.__cause__ is error


def test_what_is_for_the_user_already_or_ends_the_program_is_left() -> None:
    for error in (InputError("as it is"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as raised, in_one_sentence("a", "b"):
            raise error
        assert raised.value is error


def test_the_limits_are_as_said(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[1]")
    assert read_text(file, most=3) == "[1]"
    with pytest.raises(ValueError, match="it has 3 bytes, more than the 2"):
        read_text(file, most=2)
    os.truncate(file, MOST_BYTES + 1)
    with pytest.raises(ValueError, match="more than the 67,108,864"):
        read_text(file)
    assert parse_json("[" * 40 + "]" * 40)
    with pytest.raises(ValueError, match="nested more than 40 levels"):
        parse_json("[" * 41 + "]" * 41)
    assert parse_json('{"a": {"b": 1}, "b": 2}') == {"a": {"b": 1}, "b": 2}
    with pytest.raises(ValueError, match="it has 'b' twice"):
        parse_json('{"a": {"b": 1, "b": 1}}')
    assert parse_json(str(2**1000)) == 2**1000
    with pytest.raises(ValueError, match=r"a number of 1,101 bits"):
        parse_json(str(2**1100))


def test_a_home_that_is_none_stands_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_path("~no-such-user/a") == Path("~no-such-user/a")
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a") == Path("/home/me/a")
