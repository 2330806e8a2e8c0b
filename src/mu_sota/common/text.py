"""Phrases that several files print or record."""

import math
from datetime import datetime, timezone

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
