"""Counts the passes, and ends them when the time is up."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mu_sota.model.errors import InputError

Progress = Callable[[int, int, str], None]
"""Told the passes that were made, about how many there will be, and the check that is running."""


class TimeIsUp(InputError):
    """The time limit was reached."""


class PassCounter:
    """Counts the passes, and ends them when the time is up.

    Args:
        limit: seconds from now; None for no limit.
        progress: told at every pass.
    """

    def __init__(self, limit: float | None, progress: Progress) -> None:
        self.limit, self.progress = limit, progress
        self.end = time.monotonic() + limit if limit is not None else None
        self.check, self.done, self.expected = "", 0, 0

    def begin_check(self, check: str) -> None:
        """The passes that follow are those of this check."""
        self.check = check
        self.progress(self.done, max(self.expected, self.done), check)

    def begin_pass(self) -> None:
        """A pass begins.

        Raises:
            TimeIsUp: it begins too late.
        """
        if self.time_is_up:
            raise TimeIsUp(
                f"the time limit of {self.limit:g} seconds was reached; give more with --time-limit (time_limit=)"
            )
        self.progress(self.done, max(self.expected, self.done), self.check)
        self.done += 1

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Passes inside may be made after the time is up: those that confirm a finding."""
        end, self.end = self.end, None
        try:
            yield
        finally:
            self.end = end

    @property
    def time_is_up(self) -> bool:
        """Whether the time is up."""
        return self.end is not None and time.monotonic() > self.end
