"""A model under test: its vocabulary, the arguments it takes, and refused models."""

from typing import Any

import pytest
import torch
from planted import VOCABULARY, planted
from torch import nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.model_adapter import ModelUnderTest


def test_the_vocabulary_comes_from_the_configuration_or_the_logits() -> None:
    assert ModelUnderTest(MuForCausalLM(MuConfig(vocab_size=37, num_hidden_layers=1))).vocab_size == 37
    assert ModelUnderTest(planted("no mask")).vocab_size == VOCABULARY
    assert ModelUnderTest(planted("no mask"), 7).vocab_size == 7


def test_argument_swallowed_by_kwargs_does_not_count_as_taken() -> None:
    class Swallows(nn.Module):
        def forward(self, ids: Any, position_ids: Any = None, **inputs: Any) -> Any:
            return torch.zeros(2, 3, 4)

    tested = ModelUnderTest(Swallows())
    assert tested.takes("position_ids")
    assert not tested.takes("attention_mask")


def test_model_with_lazy_weights_is_refused() -> None:
    lazy = nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.LazyLinear(VOCABULARY))
    with pytest.raises(InputError, match="call it once, then check it"):
        ModelUnderTest(lazy)


def test_logits_of_a_wrong_shape_are_refused_in_a_sentence() -> None:
    tested = ModelUnderTest(lambda ids: torch.zeros(2, 3, 4), 4)
    with pytest.raises(InputError, match=r"logits of shape \[2, 3, 4\] for ids of shape \[1, 5\]"):
        tested.logits(torch.zeros(1, 5, dtype=torch.long))
