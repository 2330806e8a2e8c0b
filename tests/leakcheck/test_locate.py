"""The module where a leak arises is named, through loops, layouts, shared modules and summaries."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted import VOCABULARY, WIDTH, Attention, Recurrent, RunningMean, TinyLM, planted
from torch import Tensor, nn

from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.locate import Location


def located(model: Any, expected: str = "future") -> Location:
    location = next(result.location for result in check(model).findings if result.check == expected)
    assert location is not None
    return location


class Layers(nn.Module):
    """Six layers, the leak in one of them."""

    def __init__(self, leaky: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(None if index == leaky else 0) for index in range(6))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, state: Tensor) -> Tensor:
        for layer in self.layers:
            state = state + layer(state)
        return self.norm(state)


@pytest.mark.parametrize("leaky", [0, 3, 5])
def test_one_layer_of_many_is_named_and_the_path_is_folded(leaky: int) -> None:
    torch.manual_seed(0)
    location = located(TinyLM(Layers(leaky)))
    assert location.module == f"mixer.layers.{leaky}"
    later = [f"mixer.layers.{leaky + 1} ... mixer.layers.5"] if leaky < 4 else []
    assert location.path == [f"mixer.layers.{leaky}", *later, "mixer.norm", "after", "head"]
    assert (location.kind, location.after, location.before) == ("Attention", "value", "out")


def test_pooled_summary_of_the_sequence_is_named() -> None:
    location = located(planted("pooled gate"))
    assert location.summary == "mixer.pool"
    assert "by way of mixer.pool, whose output has no position of its own" in location.sentence()


def test_last_state_of_a_causal_rnn_is_not_named_as_summary() -> None:
    """It depends on all tokens and has no position, but nothing before the leak uses it."""
    torch.manual_seed(0)
    location = located(TinyLM(nn.Sequential(Recurrent(bidirectional=False), Attention(None))))
    assert location.module == "mixer.1"
    assert location.summary is None


def test_tokens_flattened_by_experts_are_followed() -> None:
    class Shift(nn.Module):
        def forward(self, flat: Tensor) -> Tensor:
            return flat.roll(-1, 0)

    class Flat(nn.Module):
        """Whose inner module gets tokens without a time axis, and so must be looked at unfolded."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, state: Tensor) -> Tensor:
            return self.inner(state.flatten(0, 1)).unflatten(0, state.shape[:2])

    class Experts(nn.Module):
        def __init__(self, leaky: bool) -> None:
            super().__init__()
            self.expert = nn.Linear(WIDTH, WIDTH)
            self.leaky = leaky

        def forward(self, state: Tensor) -> Tensor:
            flat = self.expert(state.flatten(0, 1))
            return (flat.roll(-1, 0) if self.leaky else flat).unflatten(0, state.shape[:2])

    torch.manual_seed(0)
    location = located(TinyLM(nn.Sequential(Experts(False), Experts(True), Experts(False))))
    assert (location.module, location.after) == ("mixer.1", "expert")
    assert location.path[:2] == ["mixer.1", "mixer.2"]
    torch.manual_seed(0)
    assert located(TinyLM(Flat(Shift()))).module == "mixer.inner"


def test_leak_between_two_calls_of_a_shared_module_is_located() -> None:
    class Twice(nn.Module):
        """The same layer used twice, what lies between them being the leak."""

        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(WIDTH, WIDTH)

        def forward(self, state: Tensor) -> Tensor:
            return self.shared(self.shared(state).flip(1))

    torch.manual_seed(0)
    location = located(TinyLM(Twice()))
    assert (location.module, location.after, location.before) == ("mixer", "shared", "shared")


@pytest.mark.parametrize("wrapped", [lambda state: {"state": state}, lambda state: (None, [state]), SimpleNamespace])
def test_states_are_followed_through_dictionaries_tuples_and_objects(wrapped: Any) -> None:
    class Wraps(nn.Module):
        def forward(self, state: Tensor) -> Any:
            found = state.flip(1)
            return wrapped(state=found) if wrapped is SimpleNamespace else wrapped(found)

    class Unwraps(nn.Module):
        def forward(self, given: Any) -> Tensor:
            if isinstance(given, dict):
                return given["state"]
            return given[1][0] if isinstance(given, tuple) else given.state

    torch.manual_seed(0)
    location = located(TinyLM(nn.Sequential(Wraps(), Unwraps())))
    assert location.module == "mixer.0"
    assert location.path[:2] == ["mixer.0", "mixer.1"]


def test_leak_in_a_caller_is_not_located_in_the_module_it_calls() -> None:
    class Gate(nn.Module):
        def forward(self, *states: Tensor) -> Tensor:
            return states[0] + states[1]

    class Hands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, state: Tensor) -> Tensor:
            return self.gate(state, state.flip(1))

    torch.manual_seed(0)
    location = located(TinyLM(Hands()))
    assert (location.module, location.before) == ("mixer", "gate")


def test_input_changed_in_place_is_compared_as_it_was_before() -> None:
    class InPlace(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return state.add_(state.mean(1, keepdim=True))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = InPlace()

        def forward(self, state: Tensor) -> Tensor:
            return self.inner(state.clone())

    torch.manual_seed(0)
    location = located(TinyLM(Outer()))
    assert location.module == "mixer.inner"


def test_leak_between_modules_is_located_in_the_model_itself() -> None:
    class Own(TinyLM):
        def forward(self, ids: Tensor) -> Tensor:
            state = self.before(self.embedding(ids))
            return self.head(self.after(state + state.mean(1, keepdim=True)))

    torch.manual_seed(0)
    location = located(Own(RunningMean()))
    assert (location.module, location.after, location.before) == ("", "before", "after")
    assert location.sentence() == (
        "arises in the model's own forward (Own), after before, before after; path: (model) -> logits"
    )


def test_a_function_without_modules_has_no_location() -> None:
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
    report = check(lambda ids: table[ids.roll(-1, 1)])
    assert not report.clean
    assert all(result.location is None for result in report.findings)
