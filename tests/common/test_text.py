"""Phrases read the same wherever they are printed."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mu_sota.common.text import duration, one_line, readable, timestamp, visible


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (59.6, "1 min 00 s"),
        (750, "12 min 30 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_duration_has_two_units_at_most(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_timestamp_is_now_in_utc_to_the_second() -> None:
    moment = datetime.fromisoformat(timestamp())
    assert moment.utcoffset() == timedelta(0)
    assert moment.microsecond == 0
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(seconds=5)


def test_error_is_one_line_that_is_cut_where_it_is_long() -> None:
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert one_line(KeyError()) == "KeyError: "
    long = one_line(RuntimeError("x" * 161))
    assert long == "RuntimeError: " + "x" * 157 + "..."
    assert one_line(RuntimeError("x" * 160)).endswith("x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5920.987, "5,920.99"),
        (-0.5, "-0.50"),
        (1.77e10, "1.77e10"),
        (999_999.0, "999,999.00"),
        (None, "beyond all numbers"),
        (float("inf"), "beyond all numbers"),
        (float("nan"), "beyond all numbers"),
    ],
)
def test_figure_is_readable_at_every_size(value: float | None, expected: str) -> None:
    assert readable(value) == expected


def test_figure_has_the_digits_asked_for() -> None:
    assert readable(1.23456, digits=4) == "1.2346"


@given(st.text())
def test_every_character_of_a_token_is_in_sight(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert " " not in shown
    assert len(shown) >= len(text)


def test_unprintable_characters_are_written_as_codes() -> None:
    assert visible("a b\n\t\0\x9f\u202e\ud800\U000e0041") == r"a·b⏎⇥\x00\x9f\u202e\ud800\U000e0041"
    assert visible("a b\n\t\r\0\u202e\u2066\u200b\u2028\ufeff", spaces=False) == (
        r"a b~\x0d\x00\u202e\u2066\u200b\u2028\ufeff".replace("~", "\n\t")
    )


def test_letters_spaces_and_emoji_of_all_scripts_are_kept() -> None:
    """Letters of all scripts, their spaces and joiners, emoji of several characters."""
    for text in ("naïve\u00a0café", "漢字\u3000かな", "می\u200cخواهم", "क्\u200dष", "👩\u200d👩\u200d👧", "❤\ufe0f"):
        assert visible(text, spaces=False) == text
    assert visible("👩\u200d👧\u00a0") == r"👩\u200d👧\xa0"  # but of a token, nothing is out of sight
