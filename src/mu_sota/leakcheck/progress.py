"""Progress bars of the leak check: on a terminal only, on stderr, within 80 columns."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm import tqdm

from .time_limit import Progress

WIDEST = 80


def _columns() -> int:
    return min(WIDEST, shutil.get_terminal_size().columns)


@contextmanager
def passes_bar() -> Iterator[Progress]:
    """A bar that counts passes, with their rate and the time that is left."""
    with tqdm(unit="pass", disable=None, leave=False, ncols=_columns()) as bar:

        def progress(done: int, expected: int, check: str) -> None:
            if bar.total is None:
                bar.reset(expected)  # so that the rate does not include the time before the first pass
            bar.total = expected
            bar.set_description_str(check, refresh=False)
            bar.update(done - bar.n)

        yield progress


def beside_bar() -> AbstractContextManager[None]:
    """Lines printed inside do not mix with a bar."""
    return tqdm.external_write_mode()


@contextmanager
def seconds_bar(seconds: float) -> Iterator[Callable[[float, str], None]]:
    """A bar that counts the seconds of a training."""
    total = round(seconds)
    with tqdm(total=total, unit="s", disable=None, leave=False, ncols=_columns()) as bar:

        def progress(elapsed: float, activity: str) -> None:
            bar.set_description(activity)
            bar.update(min(round(elapsed), total) - bar.n)

        yield progress
