"""Nobody predicts independent uniform tokens: a model that does leaks; too little training proves nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import VOCABULARY, Attention, TinyLM, planted
from torch import Tensor, nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.noise_training import EProcess, train_on_uniform_tokens

# Leaks end the training as soon as they are found, in a second or two; the limit is for a slow machine.
LIMIT = 60.0


@pytest.mark.parametrize("name", ["no mask", "mask off by one", "next token concatenated", "symmetric convolution"])
def test_planted_leak_is_learned_from_uniform_tokens(name: str) -> None:
    result = train_on_uniform_tokens(lambda: planted(name), LIMIT)
    assert result.verdict == "leak"
    assert result.change is not None
    assert result.tolerance is not None
    assert result.change > result.tolerance > 0
    assert "nats a token better than anyone can" in result.meaning


def test_leak_in_training_mode_only_is_found_there() -> None:
    result = train_on_uniform_tokens(lambda: planted("only in training"), LIMIT)
    assert result.verdict == "leak"
    assert "in training mode" in result.meaning


def test_causal_model_is_ok_after_the_control_used_its_leak() -> None:
    torch.manual_seed(0)
    activities: list[str] = []
    result = train_on_uniform_tokens(
        lambda: MuForCausalLM(MuConfig(vocab_size=40, num_hidden_layers=1, max_position_embeddings=16)),
        12.0,
        lambda elapsed, activity: activities.append(activity),
    )
    assert result.verdict == "ok", result
    assert "a leak planted on purpose was found after" in result.meaning
    assert activities[0].startswith("control with a planted leak, step 25: ")
    assert activities[-1].startswith("training on uniform tokens, step ")


def test_control_that_learns_nothing_skips_the_check() -> None:
    class Deaf(TinyLM):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 1e-6

    result = train_on_uniform_tokens(lambda: Deaf(Attention(0)), 0.5)
    assert result.verdict == "skipped"
    assert "did not teach it even a leak that was planted" in result.meaning


def test_training_shorter_than_the_control_skips_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu_sota.leakcheck.noise_training.MARGIN", 1e9)
    result = train_on_uniform_tokens(lambda: TinyLM(Attention(0)), 1.5)
    assert result.verdict == "skipped"
    assert "and a planted leak took" in result.meaning


def test_untrainable_model_is_refused_or_skipped() -> None:
    def frozen() -> nn.Module:
        return planted("no mask").requires_grad_(False)

    assert "no weights that could be trained" in train_on_uniform_tokens(frozen, 1.0).meaning
    with pytest.raises(InputError, match="only a module can be trained"):
        train_on_uniform_tokens(lambda: lambda ids: nn.functional.one_hot(ids, VOCABULARY).float(), 1.0)  # type: ignore[arg-type, return-value]


def test_trained_modules_are_restored() -> None:
    made = [planted("BatchNorm over time") for _ in range(2)]
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    waiting = list(made)
    train_on_uniform_tokens(waiting.pop, 0.3)
    for module in made:
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert all(weight.grad is None for weight in module.parameters())
        assert module.training


def test_modules_that_share_weights_are_refused() -> None:
    shared = planted("no mask")
    with pytest.raises(InputError, match="share weights; make new ones"):
        train_on_uniform_tokens(lambda: nn.Sequential(shared), 1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_seconds_of_training_must_be_above_0(seconds: float) -> None:
    with pytest.raises(InputError, match=r"seconds is .*, but must be a number of seconds above 0"):
        train_on_uniform_tokens(lambda: planted("no mask"), seconds)


def test_training_restores_the_random_state() -> None:
    before = torch.random.get_rng_state()
    train_on_uniform_tokens(lambda: planted("no mask"), 0.2)
    assert torch.equal(before, torch.random.get_rng_state())


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 32), st.floats(0, 6))
def test_no_causal_prediction_proves_a_leak(seed: int, num_ids: int, sharpness: float) -> None:
    """Whatever distribution is predicted without seeing the token, sharp or flat."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(num_ids, (4000,), generator=generator)
    logits = sharpness * torch.randn(4000, num_ids, generator=generator)
    losses = nn.functional.cross_entropy(logits, ids, reduction="none")
    assert not EProcess.of([losses], num_ids).proves_a_leak


def test_rare_guesses_that_mostly_gain_prove_no_leak() -> None:
    """Uniform but for excluding one id now and then: a small gain, nearly always; a t-test would be fooled often."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(32, (24_800,), generator=generator)
        losses = torch.full((24_800,), math.log(32), dtype=torch.float64)
        losses[:40] = torch.where(ids[:40] == 0, math.inf, math.log(31))
        assert not EProcess.of([losses], 32).proves_a_leak


@pytest.mark.parametrize(("hint", "proves"), [(0.02, False), (0.15, True)])
def test_large_gain_on_many_tokens_proves_a_leak(hint: float, proves: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, (100_000,), generator=generator)
    losses = nn.functional.cross_entropy(hint * nn.functional.one_hot(ids, 8).float(), ids, reduction="none")
    evidence = EProcess.of([losses[:50_000], losses[50_000:]], 8) if proves else EProcess.of([losses[:1000]], 8)
    assert evidence.mean_gain == pytest.approx(math.log(8) - losses[0].item(), rel=1e-4)
    assert evidence.proves_a_leak == proves


def test_one_object_is_refused_and_no_embedding_skips_the_check() -> None:
    model = planted("no mask")
    with pytest.raises(InputError, match="the same object"):
        train_on_uniform_tokens(lambda: model, 1.0)

    class OneHot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(VOCABULARY, VOCABULARY)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(nn.functional.one_hot(ids, VOCABULARY).float().cumsum(1))

    result = train_on_uniform_tokens(OneHot, 0.5)
    assert result.verdict == "skipped"
    assert "no nn.Embedding in which a leak could be planted" in result.meaning
