"""The gradient check: weak paths are found; broken or infinite derivatives prove nothing."""

from typing import Any

import pytest
import torch
from planted import VOCABULARY, Attention, TinyLM, planted, results
from torch import Tensor, nn

from mu_sota.leakcheck.checks import check


@pytest.mark.parametrize(("name", "strength"), [("weak", 5e-5), ("mean over the batch", 1e-5)])
def test_gradient_finds_a_leak_too_weak_to_move_a_logit(name: str, strength: float) -> None:
    """Scaled so that no logit moves by what the other checks need."""
    model = planted(name)
    model.strength = strength  # type: ignore[assignment]
    report = check(model)
    assert results(report)["gradient"].verdict == "leak", report
    assert results(report)["future"].verdict == "ok"
    assert results(report)["batch"].verdict == "ok"
    assert ("other rows" in results(report)["gradient"].meaning) == ("batch" in name)


def test_embedding_that_returns_a_tuple_is_left_out_of_the_gradient() -> None:
    class Positions(nn.Embedding):
        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            places = torch.arange(ids.shape[1])
            return super().forward(places), places

    class Model(TinyLM):
        def __init__(self, mixer: nn.Module) -> None:
            super().__init__(mixer)
            self.positions = Positions(64, VOCABULARY)

        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + self.positions(ids)[0]

    torch.manual_seed(0)
    assert check(Model(Attention(0))).clean
    assert results(check(Model(Attention(1))))["gradient"].verdict == "leak"


def test_infinite_derivatives_skip_the_gradient_check() -> None:
    class Steep(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return state.abs().detach() + (state - state.detach()).abs().sqrt()  # its derivative at 0 is infinite

    torch.manual_seed(0)
    found = results(check(TinyLM(Steep())))["gradient"]
    assert (found.verdict, found.meaning) == ("skipped", "its derivatives are not finite")


class BackwardThatFails(torch.autograd.Function):
    """As packages have that write their own, and only for training."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise TypeError("no backward pass in eval mode")


def test_failing_backward_pass_skips_the_gradient_check_alone() -> None:
    class Own(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return BackwardThatFails.apply(state)

    torch.manual_seed(0)
    report = check(TinyLM(Own()))
    found = results(report)
    assert found["gradient"].verdict == "skipped"
    assert "TypeError: no backward pass in eval mode" in found["gradient"].meaning
    assert found["future"].verdict == found["batch"].verdict == "ok"
