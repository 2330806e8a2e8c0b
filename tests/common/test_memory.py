"""After an out-of-memory error: half as many sequences at once, or a sentence."""

import gc
import weakref

import pytest
import torch

from mu_sota.common.memory import halve_until_it_fits, smaller_micro_batch
from mu_sota.model.errors import InputError


class Model:
    """Something that refers to itself, as a trainer and its callbacks do."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_the_micro_batch_is_halved_until_it_fits_and_failed_attempts_are_freed(kind: type[Exception]) -> None:
    models: list[weakref.ref[Model]] = []
    told: list[int] = []

    def attempt(micro_batch_size: int) -> int:
        assert all(model() is None for model in models), "an earlier attempt still takes memory"
        model = Model()
        models.append(weakref.ref(model))
        if micro_batch_size > 3:
            raise kind("CUDA out of memory.")
        return micro_batch_size

    gc.disable()
    try:
        assert halve_until_it_fits(attempt, 13, told.append) == 3
    finally:
        gc.enable()
    assert told == [6, 3]


def test_a_single_sequence_that_does_not_fit_says_what_to_lower() -> None:
    def attempt(micro_batch_size: int) -> None:
        raise RuntimeError("CUDA out of memory.")

    with pytest.raises(InputError, match="single sequence at once: lower window, num_hidden_layers or matrix_size"):
        halve_until_it_fits(attempt, 8, lambda smaller: None)


def test_other_errors_are_raised_again() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        smaller_micro_batch(RuntimeError("shapes do not fit"), 8)
