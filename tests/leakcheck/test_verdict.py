"""Verdicts: confirmed, doubted or skipped findings; random numbers, rounding and coarse formats are no leak."""

import math
import random
from itertools import count
from typing import Any

import pytest
import torch
from planted import CLEAN, VOCABULARY, WIDTH, Attention, TinyLM, planted, results, running_mean
from torch import Tensor, nn

from mu_sota import InputError
from mu_sota.leakcheck.checks import assert_causal, check
from mu_sota.leakcheck.report import LeakError


def test_random_model_is_checked_under_a_seed() -> None:
    """What compares passes of one shape can be asked; other shapes draw other numbers."""
    torch.manual_seed(0)
    model = CLEAN["draws in eval mode"]()
    before = torch.random.get_rng_state()
    report = check(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert report.clean, report
    assert report.draws
    assert "the model draws random numbers in eval mode: every pass was given the same seed" in report.summary()
    assert report.as_dict()["draws_random_numbers"] is True
    for name in ("future", "batch", "future (training)", "batch (training)"):
        assert results(report)[name].verdict == "ok"
    for name in ("row alone", "length", "cache", "padding"):
        assert results(report)[name].verdict == "skipped"
        assert "draws random numbers" in results(report)[name].meaning
    assert not check(CLEAN["attention"]()).draws


def test_model_with_its_own_generator_is_reported_as_random() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, state: Tensor) -> Tensor:
            return state + torch.randn(state.shape, generator=self.generator)

    torch.manual_seed(0)
    report = check(TinyLM(Own()))
    assert report.clean, report
    assert report.draws


def test_random_draws_that_depend_on_tokens_are_refused() -> None:
    class Sampled(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            chosen = state[..., 0] > 0
            noisy = state.clone()
            noisy[chosen] += torch.randn(int(chosen.sum()), WIDTH)
            return noisy

    torch.manual_seed(0)
    with pytest.raises(InputError, match="how many random numbers it draws depends on the tokens"):
        check(TinyLM(Sampled()))


def test_nondeterministic_model_is_refused() -> None:
    numbers = count()
    noisy: Any = TinyLM(Attention(0))
    noisy.after.forward = lambda state: state + next(numbers)
    with pytest.raises(
        InputError, match="not deterministic: two passes over the same tokens, with the same random"
    ) as error:
        check(noisy)
    assert not isinstance(error.value, LeakError)


def test_occasional_noise_is_no_leak() -> None:
    model, calls = CLEAN["attention"]().eval(), [0]

    def noisy(ids: Tensor) -> Tensor:
        calls[0] += 1
        return model(ids) + (torch.randn(VOCABULARY) if calls[0] % 9 == 0 else 0)

    with pytest.raises(InputError, match="not deterministic"):
        check(noisy, VOCABULARY)


def test_random_draws_in_training_mode_are_no_leak() -> None:
    """Layers dropped by Python's own generator; dropout on tokens that are routed, so that the draws depend on them."""

    class Dropped(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return state * (random.random() < 0.5) if self.training else state

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, state: Tensor) -> Tensor:
            chosen = state[..., 0] > 0
            routed = torch.zeros_like(state)
            routed[chosen] = self.dropout(state[chosen])
            return routed

    for mixer in (Dropped(), Routed()):
        torch.manual_seed(0)
        before = random.getstate()
        report = check(TinyLM(mixer))
        assert report.clean, report
        assert random.getstate() == before


@pytest.mark.parametrize("after", range(2, 60, 7))
def test_check_that_breaks_off_is_never_clean(after: int) -> None:
    model, calls = planted("no mask").eval(), [0]

    def failing(ids: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > after:
            raise MemoryError("no more")
        return model(ids)

    with pytest.raises(InputError, match=r"no more|not causal"):
        assert_causal(failing, VOCABULARY)


def test_nan_that_depends_on_the_future_is_an_error() -> None:
    def poisoned(ids: Tensor) -> Tensor:
        return running_mean(ids) * torch.where((ids == 7).any(1) & (ids[:, -1] == 8), math.nan, 1.0)[:, None, None]

    with pytest.raises((InputError, LeakError)):
        assert_causal(poisoned, 12, length=8)
