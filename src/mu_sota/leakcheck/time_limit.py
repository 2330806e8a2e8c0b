"""The count of the passes, the progress it is reported with, and the time limit after which none begins."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mu_sota.model.errors import InputError

Progress = Callable[[int, int, str], None]
"""Called with the number of passes made, about how many there will be, and the name of the running check."""


class TimeIsUp(InputError):
    """The time limit was reached."""


class PassCounter:
    """Counts the passes, and refuses further ones when the time is up.

    Args:
        limit: seconds from now; None for no limit.
        progress: called at every pass.
    """

    def __init__(self, limit: float | None, progress: Progress) -> None:
        self.limit, self.progress = limit, progress
        self.end = time.monotonic() + limit if limit is not None else None
        self.check, self.done, self.expected = "", 0, 0

    def begin_check(self, check: str) -> None:
        """The passes that follow belong to this check."""
        self.check = check
        self.progress(self.done, max(self.expected, self.done), check)

    def begin_pass(self) -> None:
        """Count a pass.

        Raises:
            TimeIsUp: the time limit was reached.
        """
        if self.time_is_up:
            raise TimeIsUp(
                f"the time limit of {self.limit:g} seconds was reached; give more with --time-limit (time_limit=)"
            )
        self.progress(self.done, max(self.expected, self.done), self.check)
        self.done += 1

    @property
    def time_is_up(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """For the passes that confirm a finding: they are made even if the time is up."""
        end, self.end = self.end, None
        try:
            yield
        finally:
            self.end = end
