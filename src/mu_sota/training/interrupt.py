"""Ctrl-C or SIGTERM: the run finishes its step, saves and stops."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm.auto import tqdm


class Interrupted(Exception):
    """The user asked the run to stop; it was saved."""


class Interrupt:
    """Remembers a SIGINT or SIGTERM until the step is done; a second one stops at once.

    Attributes:
        received: True once a signal has come.
    """

    def __init__(self) -> None:
        self.received = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            tqdm.write("Stopped without saving: --resume goes on from the last checkpoint.", file=sys.stderr)
            raise KeyboardInterrupt
        self.received = True
        tqdm.write("\nStopping: the step is finished and saved first (again to stop at once) ...", file=sys.stderr)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals until the block ends; does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
