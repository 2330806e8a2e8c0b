"""What is compared is the logits, however a model hands them over, and a model is left as it was."""

import math
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from planted import VOCABULARY, planted
from torch import Tensor, nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.logits import change, logits_in, named_tensors, spread
from mu_sota.leakcheck.model_adapter import ModelUnderTest
from mu_sota.leakcheck.perturbation import SIGNS, Scaling, perturb_zeros, scale_up

LOGITS = torch.zeros(2, 3, 4)


class Output:
    logits = LOGITS


@pytest.mark.parametrize(
    "output",
    [LOGITS, Output(), {"loss": None, "logits": LOGITS}, (LOGITS, None), (None, LOGITS), [torch.tensor(1.0), LOGITS]],
)
def test_logits_are_found(output: Any) -> None:
    assert [id(found) for found in logits_in(output)] == [id(LOGITS)]


@pytest.mark.parametrize("output", [None, (), {}, "text", torch.zeros(2, 3), torch.zeros(2, 3, 4).long(), {"loss": 1}])
def test_what_is_no_logits_is_not_taken_for_them(output: Any) -> None:
    assert logits_in(output) == []


def test_tensors_are_called_by_key_attribute_or_index() -> None:
    class Pair(NamedTuple):
        hidden: Tensor
        scores: Tensor

    class Attributes:
        def __init__(self) -> None:
            self.scores, self.loss = LOGITS, 1.0

    assert list(named_tensors({"scores": LOGITS, "loss": None})) == ["scores"]
    assert list(named_tensors((None, LOGITS))) == ["1"]
    assert list(named_tensors(Pair(LOGITS, LOGITS))) == ["0", "1", "hidden", "scores"]
    assert list(named_tensors(Attributes())) == ["scores"]
    assert list(named_tensors(LOGITS)) == [""]
    assert list(named_tensors(Output())) == ["logits"]


def test_change_counts_equal_infinities_as_equal() -> None:
    ours = torch.tensor([1.0, -math.inf, math.inf])
    assert change(ours, ours.clone()) == 0
    assert change(ours, torch.tensor([1.5, -math.inf, math.inf])) == 0.5
    assert change(ours, torch.tensor([1.0, 0.0, math.inf])) == math.inf
    assert change(ours[:0], ours[:0]) == 0
    assert change(ours, torch.tensor([math.nan, -math.inf, math.inf])) == math.inf
    assert change(ours * math.nan, ours * math.nan) == 0


@pytest.mark.parametrize("fill", [0.0, 5.0, -1e4, -1e9, -math.inf, torch.finfo(torch.float32).min])
def test_entries_that_are_masked_everywhere_do_not_set_the_scale(fill: float) -> None:
    logits = 3 * torch.randn(5, 61, 20, generator=torch.Generator().manual_seed(0)) + 100 * torch.arange(20)
    assert spread(logits) == pytest.approx(3, rel=0.05)
    assert spread(nn.functional.pad(logits, (0, 14), value=fill)) == pytest.approx(spread(logits))
    assert spread(torch.ones(2, 3, 4)) == 0


def test_the_vocabulary_comes_from_the_configuration_or_the_logits() -> None:
    assert ModelUnderTest(MuForCausalLM(MuConfig(vocab_size=37, num_hidden_layers=1))).vocab_size == 37
    assert ModelUnderTest(planted("no mask")).vocab_size == VOCABULARY
    assert ModelUnderTest(planted("no mask"), 7).vocab_size == 7


def test_an_argument_that_is_only_swallowed_does_not_count_as_taken() -> None:
    class Swallows(nn.Module):
        def forward(self, ids: Any, position_ids: Any = None, **inputs: Any) -> Any:
            return LOGITS

    tested = ModelUnderTest(Swallows())
    assert tested.takes("position_ids")
    assert not tested.takes("attention_mask")


def test_weights_at_zero_are_opened_and_closed_again() -> None:
    model = planted("behind a zero projection")
    projection: Any = model.mixer.projection  # type: ignore[union-attr]
    others = model.head.weight.clone()  # type: ignore[union-attr]
    with ModelUnderTest(model).state.changed_weights(perturb_zeros):
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert torch.equal(model.head.weight, others)  # type: ignore[union-attr]
    assert not projection.weight.any()


@pytest.mark.parametrize("signs", SIGNS)
def test_louder_weights_are_other_weights_and_no_longer_than_that(signs: Any) -> None:
    model = planted("behind sigmoid(-20)")
    gates = model.mixer.gates  # type: ignore[union-attr]
    gate: Any = gates[0]  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ModelUnderTest(model).state.changed_weights(partial(scale_up, scaling=Scaling(signs, 4.0))):
        assert gate.item() in ({"kept": [-80], "positive": [80], "negative": [-80], "random": [-80, 80]}[signs])
        assert torch.equal(model.head.weight, 4 * before["head.weight"])  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_whose_weights_are_not_there_yet_is_refused() -> None:
    lazy = nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.LazyLinear(VOCABULARY))
    with pytest.raises(InputError, match="call it once, then check it"):
        ModelUnderTest(lazy)


def test_logits_of_a_wrong_shape_are_refused_in_a_sentence() -> None:
    tested = ModelUnderTest(lambda ids: LOGITS, 4)
    with pytest.raises(InputError, match=r"logits of shape \[2, 3, 4\] for ids of shape \[1, 5\]"):
        tested.logits(torch.zeros(1, 5, dtype=torch.long))
