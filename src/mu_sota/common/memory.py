"""What to do when the memory is full: the same batch in more parts, or a sentence that says what to lower."""

from collections.abc import Callable
from typing import TypeVar

from mu_sota.model.errors import InputError

from .environment import is_out_of_memory, release_memory

T = TypeVar("T")


def halve_until_it_fits(attempt: Callable[[int], T], micro_batch_size: int, tell: Callable[[int], None]) -> T:
    """Call `attempt` with a number of sequences to process at once, halved after every out-of-memory error.

    What a failed attempt has made is freed before the next, so the caller must hold no model of it.

    Args:
        attempt: raises out-of-memory errors as PyTorch and Python do; any other error of it is not caught.
        micro_batch_size: of the first attempt.
        tell: gets the new size before the next attempt; may raise.

    Raises:
        InputError: one sequence at once is still too much.
    """
    while True:
        try:
            return attempt(micro_batch_size)
        except (RuntimeError, MemoryError) as error:
            micro_batch_size = smaller_micro_batch(error, micro_batch_size)
            tell(micro_batch_size)
        release_memory()  # not above, where the error still holds the frames of the attempt


def smaller_micro_batch(error: Exception, micro_batch_size: int) -> int:
    """Half of the micro-batch after an out-of-memory error; any other error is raised again.

    Raises:
        InputError: the micro-batch is a single sequence, so something else must be lowered.
    """
    if not is_out_of_memory(error):
        raise error
    if micro_batch_size == 1:
        raise InputError(
            "out of memory with a single sequence at once: lower window, num_hidden_layers or matrix_size with --set"
        ) from error
    return micro_batch_size // 2
