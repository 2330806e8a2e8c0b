"""Scaled-up weights: masks stay as they are, and infinite logits are not compared."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from planted import Attention, TinyLM, planted, results
from torch import Tensor, nn

from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.model_adapter import ModelUnderTest
from mu_sota.leakcheck.perturbation import SIGNS, Scaling, perturb_zeros, scale_up


def test_zero_initialised_weights_are_perturbed_and_restored() -> None:
    model: Any = planted("behind a zero projection")
    projection = model.mixer.projection
    others = model.head.weight.clone()
    with ModelUnderTest(model).state.changed_weights(perturb_zeros):
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert torch.equal(model.head.weight, others)
    assert not projection.weight.any()


@pytest.mark.parametrize("signs", SIGNS)
def test_scaled_up_weights_are_restored(signs: Any) -> None:
    model = planted("behind sigmoid(-20)")
    gates = model.mixer.gates  # type: ignore[union-attr]
    gate: Any = gates[0]  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ModelUnderTest(model).state.changed_weights(partial(scale_up, scaling=Scaling(signs, 4.0))):
        assert gate.item() in ({"kept": [-80], "positive": [80], "negative": [-80], "random": [-80, 80]}[signs])
        assert torch.equal(model.head.weight, 4 * before["head.weight"])  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mask_parameters_are_not_scaled_up() -> None:
    class Masked(Attention):
        def __init__(self, mask: Tensor, trained: bool) -> None:
            super().__init__(None)
            self.mask = nn.Parameter(mask, requires_grad=trained)

        def forward(self, state: Tensor) -> Tensor:
            scores = self.query(state) @ self.key(state).transpose(1, 2)
            length = state.shape[1]
            mask = self.mask[:length, :length]
            scores = scores.masked_fill(mask == 0, -math.inf) if mask.max() == 1 else scores + mask
            return self.out(scores.softmax(-1) @ self.value(state))

    masks = (
        torch.ones(64, 64).tril(),
        torch.full((64, 64), -1e9).triu(1),
        torch.full((64, 64), -math.inf).triu(1),
    )
    for mask in masks:
        for trained in (False, True):
            torch.manual_seed(0)
            report = check(TinyLM(Masked(mask, trained)))
            assert report.clean, report
            assert results(report)["future (louder)"].verdict == "ok"
        frozen = TinyLM(Masked(mask, False)).requires_grad_(False)
        assert check(frozen).clean


def test_infinite_logits_at_scaled_up_weights_skip_the_check() -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.05))

        def forward(self, state: Tensor) -> Tensor:
            return state * torch.exp(torch.exp(9 * self.rate.abs()))

    torch.manual_seed(0)
    found = results(check(TinyLM(Exploding())))
    assert found["future"].verdict == "ok"
    assert found["future (louder)"].verdict == "skipped"
    assert "with scaled-up weights" in found["future (louder)"].meaning
