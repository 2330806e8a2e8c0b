"""Timing of training steps: two models in turn, and what happens when the memory is short."""

import itertools
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from mu_sota import MuConfig
from mu_sota.comparison import timing
from mu_sota.comparison.timing import StepTimer
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings

LIKE = MuConfig(vocab_size=500, num_hidden_layers=2, max_position_embeddings=32)
RUN = load_settings("quickstart", None, {"window": 32, "stride": 32}).run


def timer(monkeypatch: pytest.MonkeyPatch, micro_batch_size: int = 8) -> StepTimer:
    monkeypatch.setattr(timing, "_PROBE_SECONDS", 0.01)
    return StepTimer(RUN, micro_batch_size, "fp32", torch.device("cpu"))


def test_a_larger_model_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    large = MuConfig(vocab_size=500, num_hidden_layers=12, max_position_embeddings=32)
    assert timer(monkeypatch).ratio(large, LIKE) > 2


def test_the_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    once = timer(monkeypatch)
    order: list[int] = []
    numbers = itertools.count()

    def step(config: PreTrainedConfig) -> Any:
        number = next(numbers)

        def seconds() -> float:
            order.append(number)
            return 0.1 * (number + 1)

        return seconds

    monkeypatch.setattr(once, "_step", step)
    assert once.ratio(LIKE, LIKE) == pytest.approx(0.5)
    assert order == [0, 1, *[0, 0, 0, 1, 1, 1] * 3]


def test_out_of_memory_halves_what_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    once = timer(monkeypatch)
    honest = once._step

    def limited(config: PreTrainedConfig) -> Any:
        if once.micro_batch_size > 2:
            raise RuntimeError("CUDA out of memory.")
        return honest(config)

    monkeypatch.setattr(once, "_step", limited)
    assert once.seconds(LIKE) > 0
    assert once.micro_batch_size == 2
    monkeypatch.setattr(once, "_step", lambda config: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(InputError, match="out of memory with a single sequence at once: lower window"):
        once.seconds(LIKE)
