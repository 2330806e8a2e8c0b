"""The leak check passes our model and names what is wrong with models that see what they must not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.causality import LeakError, assert_causal, find_leaks

VOCABULARY, LENGTH = 50, 24


def _embed(ids: Tensor) -> Tensor:
    """A fixed vector a token; the running mean of them is a causal model."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
    return table[ids]


def _running_mean(ids: Tensor) -> Tensor:
    vectors = _embed(ids)
    return vectors.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]


def _next_token(ids: Tensor) -> Tensor:
    return _running_mean(ids) + 0.01 * _embed(ids.roll(-1, 1))


def _sequence_mean(ids: Tensor) -> Tensor:
    return _running_mean(ids) + 0.01 * _embed(ids).mean(1, keepdim=True)


def _batch_mean(ids: Tensor) -> Tensor:
    return _running_mean(ids) + 0.01 * _embed(ids).mean(0, keepdim=True)


def _length(ids: Tensor) -> Tensor:
    return _running_mean(ids) * (1 + 1 / ids.shape[1])


def test_a_causal_function_and_our_model_pass() -> None:
    assert_causal(_running_mean, VOCABULARY, LENGTH)
    torch.manual_seed(0)
    model = MuForCausalLM(MuConfig(vocab_size=VOCABULARY, num_hidden_layers=3, max_position_embeddings=LENGTH)).eval()
    assert_causal(lambda ids: model(ids).logits, VOCABULARY, LENGTH)


@pytest.mark.parametrize(
    ("leaky", "check"),
    [(_next_token, "future"), (_sequence_mean, "future"), (_batch_mean, "batch"), (_length, "prefix")],
)
def test_a_planted_leak_is_found_and_named(leaky: Callable[[Tensor], Tensor], check: str) -> None:
    assert check in {finding.check for finding in find_leaks(leaky, VOCABULARY, LENGTH)}
    with pytest.raises(LeakError, match="not causal"):
        assert_causal(leaky, VOCABULARY, LENGTH)


def test_nan_is_a_finding_and_the_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    assert find_leaks(lambda ids: _running_mean(ids) * float("nan"), VOCABULARY, LENGTH)
    assert torch.equal(before, torch.random.get_rng_state())
