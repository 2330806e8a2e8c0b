"""Nobody predicts independent uniform tokens: who does, leaks; and too little training is no proof of anything."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import VOCABULARY, Attention, TinyLM, planted
from torch import Tensor, nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.uniform import SIGMAS, Gain, train_on_uniform_tokens

# Leaks end the training as soon as they are seen, in a second or two; the limit is for a slow machine.
LIMIT = 60.0


@pytest.mark.parametrize("name", ["no mask", "mask off by one", "next token concatenated", "symmetric convolution"])
def test_a_leak_is_learned_and_seen(name: str) -> None:
    result = train_on_uniform_tokens(lambda: planted(name), LIMIT)
    assert result.verdict == "leak"
    assert result.change is not None
    assert result.tolerance is not None
    assert result.change > result.tolerance > 0
    assert "nats better than anyone can" in result.meaning


def test_a_leak_that_exists_only_in_training_is_seen_there() -> None:
    result = train_on_uniform_tokens(lambda: planted("only in training"), LIMIT)
    assert result.verdict == "leak"
    assert "in training mode" in result.meaning


def test_a_causal_model_gains_nothing_though_it_would_have_used_a_leak() -> None:
    torch.manual_seed(0)
    said: list[str] = []
    result = train_on_uniform_tokens(
        lambda: MuForCausalLM(MuConfig(vocab_size=40, num_hidden_layers=1, max_position_embeddings=16)),
        12.0,
        lambda elapsed, what: said.append(what),
    )
    assert result.verdict == "ok", result
    assert "a planted leak was seen after" in result.meaning
    assert said[0].startswith("control with a planted leak, step 25: ")
    assert said[-1].startswith("training on uniform tokens, step ")


def test_a_model_that_learns_nothing_proves_nothing() -> None:
    class Deaf(TinyLM):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 1e-6

    result = train_on_uniform_tokens(lambda: Deaf(Attention(0)), 0.5)
    assert result.verdict == "skipped"
    assert "did not teach it even a leak that was planted" in result.meaning


def test_what_cannot_be_trained_is_said() -> None:
    frozen = planted("no mask").requires_grad_(False)
    assert "no weights that could be trained" in train_on_uniform_tokens(lambda: frozen, 1.0).meaning
    with pytest.raises(InputError, match="only a module can be trained"):
        train_on_uniform_tokens(lambda: lambda ids: nn.functional.one_hot(ids, VOCABULARY).float(), 1.0)  # type: ignore[arg-type, return-value]


def test_the_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    train_on_uniform_tokens(lambda: planted("no mask"), 0.2)
    assert torch.equal(before, torch.random.get_rng_state())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 32), st.floats(0, 6))
def test_no_causal_prediction_gains(seed: int, num_ids: int, sharpness: float) -> None:
    """Whatever distribution is predicted without seeing the token, sharp or flat, the gain is no finding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(num_ids, (4000,), generator=generator)
    logits = sharpness * torch.randn(4000, num_ids, generator=generator)
    losses = nn.functional.cross_entropy(logits, ids, reduction="none")
    assert not Gain.of([losses], num_ids).significant


def test_a_small_gain_on_many_tokens_is_a_finding() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, (100_000,), generator=generator)
    logits = 0.15 * nn.functional.one_hot(ids, 8) + 0.01 * torch.randn(100_000, 8, generator=generator)
    losses = nn.functional.cross_entropy(logits, ids, reduction="none")
    gain = Gain.of([losses], 8)
    assert gain.mean == pytest.approx(math.log(8) - losses.double().mean().item())
    assert gain.mean > SIGMAS * gain.error
    assert gain.significant
