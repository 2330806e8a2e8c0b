"""The leak check finds and traces every planted leak, passes what is causal, and says what it cannot check."""

import importlib
import json
import math
import random
import re
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planted import CLEAN, LEAKS, VOCABULARY, WIDTH, Attention, RunningMean, TinyLM, planted
from torch import Tensor, nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.checks import assert_causal, check
from mu_sota.leakcheck.report import LeakError, Report, Result


def results(report: Report) -> dict[str, Result]:
    return {result.check: result for result in report.results}


# What leaks is found, by the check that is there for it, and traced to where it arises.


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found_and_traced(name: str) -> None:
    _, expected, module = LEAKS[name]
    report = check(planted(name))
    assert not report.clean
    found = results(report)[expected]
    assert found.verdict == ("differs" if expected in ("length", "cache", "padding") else "leak")
    assert found.change is not None
    assert found.tolerance is not None
    assert found.change > 10 * found.tolerance
    assert found.location is not None
    assert found.location.module == module
    assert found.location.path[-1] in ("lm_head", "head", "(model)")
    leaks = {finding.check for finding in report.findings if finding.verdict == "leak"}
    assert {finding.check for finding in report.findings} - leaks <= {"length", "cache", "padding"}
    assert ("length" in leaks) <= ("future" in leaks)  # a text's length alone is no token that is seen


@pytest.mark.parametrize(("name", "strength"), [("weak", 5e-5), ("mean over the batch", 1e-5)])
def test_a_gradient_shows_a_path_that_is_too_weak_to_move_anything(name: str, strength: float) -> None:
    """Scaled so that no logit moves by what the other checks need."""
    model = planted(name)
    model.strength = strength  # type: ignore[assignment]
    report = check(model)
    assert results(report)["gradient"].verdict == "leak", report
    assert results(report)["future"].verdict == "ok"
    assert results(report)["batch"].verdict == "ok"
    assert ("other rows" in results(report)["gradient"].meaning) == ("batch" in name)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_figure_does_not_depend_on_the_scale_of_the_logits(factor: float) -> None:
    model = planted("weak")
    expected = results(check(model))["future"].change
    assert results(check(lambda ids: factor * model(ids)))["future"].change == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fill", [-1e4, -1e9, -math.inf, torch.finfo(torch.float32).min])
def test_a_masked_part_of_the_vocabulary_does_not_hide_a_leak(fill: float) -> None:
    model, clean = planted("weak"), CLEAN["attention"]()
    expected = results(check(model))["future"].change
    masked = check(lambda ids: nn.functional.pad(model(ids), (0, 14), value=fill), VOCABULARY)
    assert results(masked)["future"].change == pytest.approx(expected, rel=1e-3)
    assert check(lambda ids: nn.functional.pad(clean(ids), (0, 14), value=fill), VOCABULARY).clean


def test_padding_on_the_right_alone_is_enough() -> None:
    class Shifted(TinyLM):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            mask = torch.ones_like(ids) if attention_mask is None else attention_mask
            return super().forward(ids) + 0.1 * (mask[:, :1] - mask[:, -1:])[..., None]  # 1 if padded on the right

    torch.manual_seed(0)
    model = Shifted(nn.Identity())
    model.before.forward = torch.zeros_like  # each token by itself, so that padding on the left is harmless
    found = results(check(model))["padding"]
    assert found.verdict == "differs"
    assert "of padding on the right" in found.meaning


def test_a_leak_over_the_batch_is_not_taken_for_one_over_time() -> None:
    found = {leak.check for leak in check(planted("mean over the batch")).findings}
    assert found == {"batch", "row alone", "gradient", "batch (training)"}


@pytest.mark.parametrize("name", CLEAN)
def test_a_causal_model_passes(name: str) -> None:
    torch.manual_seed(0)
    report = check(CLEAN[name]())
    assert report.clean, report
    assert results(report)["gradient"].change == 0.0
    assert results(report)["future"].change == 0.0


def test_our_model_passes() -> None:
    torch.manual_seed(0)
    report = assert_causal(MuForCausalLM(MuConfig(vocab_size=VOCABULARY, num_hidden_layers=3)))
    checked = {result.check for result in report.results if result.verdict == "ok"}
    assert {"future", "batch", "length", "gradient", "padding", "future (training)", "batch (training)"} <= checked


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "Bloom": {"n_layer": 2, "n_head": 2},
    "Llama": {"num_key_value_heads": 1},
    "Mistral": {"num_key_value_heads": 1, "sliding_window": 8},
    "Mixtral": {"num_key_value_heads": 1, "num_local_experts": 4},
    "Qwen2": {"num_key_value_heads": 1},
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "Gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "Gemma2": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
    "Mamba": {"state_size": 4},
    "FalconMamba": {"state_size": 4},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_of_transformers_pass(name: str) -> None:
    library = importlib.import_module("transformers")
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = getattr(library, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
        getattr(library, f"{name}Config")(**sizes | ARCHITECTURES[name])
    )
    report = check(model)
    assert report.clean, report
    assert [result.check for result in report.results if result.verdict == "skipped"] == []


# Functions, and modules that are no model of transformers.


def _embed(ids: Tensor) -> Tensor:
    """A fixed vector a token; the running mean of them is a causal model."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
    return table[ids]


def _running_mean(ids: Tensor) -> Tensor:
    return _embed(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]


@pytest.mark.parametrize(
    ("leak", "expected"),
    [
        (lambda ids: _embed(ids.roll(-1, 1)), "future"),
        (lambda ids: _embed(ids).mean(1, keepdim=True), "future"),
        (lambda ids: _embed(ids).mean(0, keepdim=True), "batch"),
        (lambda ids: _embed(ids) / ids.shape[1], "length"),
        (lambda ids: _embed(ids) * (len(ids) == 1), "row alone"),
        (lambda ids: _embed(ids.flip(0)), "batch"),
    ],
)
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_a_leak_in_a_function_is_found(leak: Callable[[Tensor], Tensor], expected: str, strength: float) -> None:
    def leaky(ids: Tensor) -> Tensor:
        return _running_mean(ids) + strength * leak(ids)

    report = check(leaky)
    assert results(report)[expected].verdict == ("differs" if expected == "length" else "leak")
    assert results(report)["gradient"].verdict == "skipped"
    assert check(_running_mean).clean


def test_a_function_that_calls_modules_is_traced_into_them() -> None:
    model = planted("symmetric convolution").eval()
    found = results(check(lambda ids: 1 * model(ids)))["future"]
    assert found.location is not None
    assert found.location.module == "TinyLM.mixer.convolution"
    assert found.location.path == ["TinyLM.mixer.convolution", "TinyLM.after", "TinyLM.head"]


def test_the_modules_that_a_function_calls_are_checked_as_modules_are() -> None:
    """In eval and in training mode, awake, and left as they were."""
    model = planted("BatchNorm over time").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = check(lambda ids: (model(ids),))
    assert [leak.check for leak in report.findings] == ["future (training)", "batch (training)"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    dropping = TinyLM(nn.Sequential(Attention(0), nn.Dropout(0.5))).train()
    assert check(lambda ids: 1 * dropping(ids)).clean
    asleep = planted("behind a zero projection")
    assert not check(lambda ids: 1 * asleep(ids)).clean


@pytest.mark.parametrize(
    "wrap",
    [lambda logits: logits, lambda logits: (logits, None), lambda logits: {"logits": logits, "loss": None}],
)
def test_logits_are_taken_as_models_give_them(wrap: Callable[[Tensor], Any]) -> None:
    report = check(lambda ids: wrap(_running_mean(ids)))
    assert report.clean
    assert report.vocab_size == VOCABULARY


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 70), st.integers(4, 9), st.integers(2, 60), st.integers(1, 69))
def test_one_dependence_is_found_at_any_size(length: int, rows: int, vocabulary: int, ahead: int) -> None:
    """Every position sees the token `ahead` of it, weakly; there is one to be seen if the text is longer than that."""
    assume(rows != length)
    table = torch.randn(vocabulary, 8, generator=torch.Generator().manual_seed(0))

    def leaky(ids: Tensor) -> Tensor:
        seen = nn.functional.pad(table[ids][:, ahead:], (0, 0, 0, min(ahead, ids.shape[1])))
        return RunningMean()(table[ids]) + 0.05 * seen

    report = check(leaky, vocabulary, length=length, rows=rows)
    assert report.clean == (ahead >= length)


def test_an_embedding_that_returns_more_than_its_vectors_is_let_be() -> None:
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


# What cannot be checked is said, and is no leak.


def test_a_model_that_draws_at_random_is_checked_under_a_seed() -> None:
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


def test_an_own_generator_is_told_from_what_is_deterministic() -> None:
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


def test_tokens_that_decide_how_much_is_drawn_are_no_leak() -> None:
    class Sampled(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            chosen = state[..., 0] > 0
            noisy = state.clone()
            noisy[chosen] += torch.randn(int(chosen.sum()), WIDTH)
            return noisy

    torch.manual_seed(0)
    with pytest.raises(InputError, match="how many random numbers it draws depends on the tokens"):
        check(TinyLM(Sampled()))


def test_what_still_differs_under_a_seed_is_refused() -> None:
    noisy, numbers = TinyLM(Attention(0)), count()
    noisy.after.forward = lambda state: state + next(numbers)
    with pytest.raises(
        InputError, match="not deterministic: two passes over the same tokens, with the same random"
    ) as error:
        check(noisy)
    assert not isinstance(error.value, LeakError)


class Lengths(TinyLM):
    """Takes some lengths only."""

    def __init__(self, taken: Callable[[int], bool]) -> None:
        super().__init__(Attention(0))
        self.taken = taken

    def forward(self, ids: Tensor) -> Tensor:
        if not self.taken(ids.shape[1]):
            raise ValueError(f"{ids.shape[1]} tokens are not taken")
        return super().forward(ids)


@pytest.mark.parametrize(
    ("taken", "length"),
    [
        (lambda tokens: tokens % 64 == 0, 64),
        (lambda tokens: tokens == 128, 128),
        (lambda tokens: tokens <= 40, 32),
        (lambda tokens: tokens % 16 == 0, 64),
    ],
)
@pytest.mark.parametrize("vocab_size", [None, VOCABULARY])
def test_another_length_is_tried_if_the_default_is_refused(
    taken: Callable[[int], bool], length: int, vocab_size: int | None
) -> None:
    torch.manual_seed(0)
    report = check(Lengths(taken), vocab_size)
    assert report.clean, report
    assert report.length == length


def test_the_first_error_is_shown_if_no_length_is_taken() -> None:
    with pytest.raises(InputError, match=r"61 tokens are not taken; neither did it take 64, 128.* give --length"):
        check(Lengths(lambda tokens: tokens == 100))
    assert check(Lengths(lambda tokens: tokens == 100), length=100).clean


def test_a_prefix_that_is_refused_leaves_the_others_standing() -> None:
    torch.manual_seed(0)
    found = results(check(Lengths(lambda tokens: tokens > 15)))["length"]
    assert found.verdict == "ok"
    assert "2 tokens are not taken" in found.meaning


def test_masks_that_are_weights_are_left_alone_when_weights_are_louder() -> None:
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


def test_weights_that_cannot_be_louder_are_said_not_to_be_checked() -> None:
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


@pytest.mark.parametrize("seconds", [0.5, 12.5, 37.5])
def test_a_time_limit_before_future_and_batch_are_done_is_an_error(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on by a second whenever it is looked at: once a pass, and once at the start."""
    monkeypatch.setattr("mu_sota.leakcheck.time_limit.time.monotonic", count(0.0).__next__)
    with pytest.raises(
        InputError, match=f"the time limit of {seconds} seconds was reached; give more with --time-limit"
    ):
        check(CLEAN["attention"](), time_limit=seconds)


@pytest.mark.parametrize("seconds", [70.5, 100.5, 120.5, 200.5])
def test_what_the_time_did_not_suffice_for_is_not_checked(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu_sota.leakcheck.time_limit.time.monotonic", count(0.0).__next__)
    torch.manual_seed(0)
    report = check(CLEAN["attention"](), time_limit=seconds)
    over = [result for result in report.results if "the time limit of" in result.meaning]
    assert len(report.results) == 11
    assert over[-1] is report.results[-1]
    assert all(result.verdict == "skipped" for result in over)
    assert report.clean


def test_a_leak_that_was_found_stands_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu_sota.leakcheck.time_limit.time.monotonic", count(0.0).__next__)
    report = check(planted("no mask"), time_limit=15.5)
    assert results(report)["future"].verdict == "leak"
    assert results(report)["batch"].verdict == "skipped"


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_time_limit_must_be_some_time(limit: float) -> None:
    with pytest.raises(InputError, match=r"time_limit=\) is .*, but must be a number of seconds above 0"):
        check(_running_mean, time_limit=limit)


def test_progress_is_told_at_every_pass() -> None:
    told: list[tuple[int, int, str]] = []
    torch.manual_seed(0)
    check(CLEAN["GPT-2"](), progress=lambda *said: told.append(said))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert all(done <= expected for done, expected, _ in told)
    names = list(dict.fromkeys(check for _, _, check in told))
    assert names[:3] == ["future", "batch", "row alone"]
    assert names[-1] == "batch (training)"


@pytest.mark.parametrize("function", [check, assert_causal])
def test_unknown_settings_are_refused_by_name(function: Any) -> None:
    with pytest.raises(TypeError, match="lenght"):
        function(_running_mean, lenght=20)


def test_a_record_holds_no_infinity() -> None:
    def masked_by_the_future(ids: Tensor) -> Tensor:
        return _running_mean(ids).masked_fill((ids.roll(-1, 1) > 25)[..., None], -math.inf)

    record = check(masked_by_the_future).as_dict()
    assert record["checks"][0]["change"] is None
    assert "the change is infinite, or not a number" in record["checks"][0]["meaning"]
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda ids: _running_mean(ids) * math.nan, "hold NaN"),
        (lambda ids: torch.zeros(*ids.shape, 9), "the same logits whatever the tokens"),
        (lambda ids: _running_mean(ids)[:, -1:], r"shape \[5, 1, 50\] for ids of shape \[5, 61\]"),
        (lambda ids: _running_mean(ids).argmax(-1), "did not return logits"),
        (lambda ids: nn.functional.pad(ids, (0, 4)) @ ids, "could not be called with token ids"),
        ("gpt2", "a model to check is a function"),
    ],
)
def test_what_cannot_be_checked_is_said(model: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 1}, "length is 1"),
        ({"rows": 3}, "rows is 3"),
        ({"rows": 6, "length": 6}, "rows is 6"),
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"vocab_size": 51}, r"IndexError.*if it has fewer than 61 positions, give --length .* than 51, --vocab-size"),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(_running_mean, **arguments)  # type: ignore[arg-type]


def test_a_length_beyond_the_positions_is_refused() -> None:
    model = MuForCausalLM(MuConfig(vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=20))
    with pytest.raises(InputError, match="length is 21, but the model has 20 positions"):
        check(model, length=21)
    assert check(model).length == 20


def test_a_model_of_one_length_is_checked_at_that() -> None:
    class Fixed(TinyLM):
        def forward(self, ids: Tensor) -> Tensor:
            if ids.shape[1] != 20:
                raise ValueError(f"20 tokens, not {ids.shape[1]}")
            return super().forward(ids)

    report = check(Fixed(Attention(0)), VOCABULARY, length=20)
    assert report.clean
    assert "20 tokens, not 19" in results(report)["length"].meaning
    assert not check(Fixed(Attention(1)), VOCABULARY, length=20).clean


def test_masked_logits_of_minus_infinity_are_no_finding() -> None:
    def masked(ids: Tensor) -> Tensor:
        return _running_mean(ids).masked_fill(torch.arange(VOCABULARY) > 40, -math.inf)

    assert check(masked).clean

    def masked_by_the_future(ids: Tensor) -> Tensor:
        return _running_mean(ids).masked_fill((ids.roll(-1, 1) > 25)[..., None], -math.inf)

    assert results(check(masked_by_the_future))["future"].change == math.inf


@pytest.mark.parametrize("after", range(2, 60, 7))
def test_a_check_that_breaks_off_is_never_clean(after: int) -> None:
    model, calls = planted("no mask").eval(), [0]

    def failing(ids: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > after:
            raise MemoryError("no more")
        return model(ids)

    with pytest.raises(InputError, match=r"no more|not causal"):
        assert_causal(failing, VOCABULARY)


def test_a_prediction_that_is_nan_because_of_the_future_is_a_leak() -> None:
    def poisoned(ids: Tensor) -> Tensor:
        return _running_mean(ids) * torch.where((ids == 7).any(1) & (ids[:, -1] == 8), math.nan, 1.0)[:, None, None]

    with pytest.raises((InputError, LeakError)):
        assert_causal(poisoned, 12, length=8)


def test_ids_that_a_model_writes_to_are_its_own() -> None:
    model = CLEAN["attention"]()

    def shifting(ids: Tensor) -> Tensor:
        ids[:, 1:] = ids[:, :-1].clone()
        ids[:, 0] = 0
        return model(ids)

    assert check(shifting, VOCABULARY).clean


def test_derivatives_that_are_not_finite_prove_nothing() -> None:
    class Steep(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return state.abs().detach() + (state - state.detach()).abs().sqrt()  # its derivative at 0 is infinite

    torch.manual_seed(0)
    found = results(check(TinyLM(Steep())))["gradient"]
    assert (found.verdict, found.meaning) == ("skipped", "its derivatives are not finite")


def test_noise_that_comes_only_now_and_then_is_no_leak() -> None:
    model, calls = CLEAN["attention"]().eval(), [0]

    def noisy(ids: Tensor) -> Tensor:
        calls[0] += 1
        return model(ids) + (torch.randn(VOCABULARY) if calls[0] % 9 == 0 else 0)

    with pytest.raises(InputError, match="not deterministic"):
        check(noisy, VOCABULARY)


def test_what_only_training_draws_at_random_is_no_leak() -> None:
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


def test_hidden_states_beside_the_logits_are_not_taken_for_them() -> None:
    model = planted("no mask")
    state = torch.randn(VOCABULARY, WIDTH)

    def both(ids: Tensor) -> tuple[Tensor, Tensor]:
        return state[ids], model(ids)

    assert not check(both, VOCABULARY).clean
    said = (
        r"several tensors that could be logits \(0: \[1, 61, 24\], 1: .*; give vocab_size, or name .*--output NAME or"
    )
    with pytest.raises(InputError, match=said):
        check(both)


def test_of_two_outputs_that_could_both_be_logits_one_must_be_named() -> None:
    """The first is causal, the second is not: what is checked depends on the choice."""
    leaky = planted("no mask")

    def tuples(ids: Tensor) -> Any:
        return _running_mean(ids), leaky(ids)

    def named(ids: Tensor) -> Any:
        return {"draft": _running_mean(ids), "final": leaky(ids)}

    for vocab_size in (None, VOCABULARY):
        with pytest.raises(InputError, match=r"--output NAME or INDEX \(output=\)"):
            check(tuples, vocab_size)
    with pytest.raises(InputError, match=r"did not return logits.* --output \(output=\): draft: .*, final: "):
        check(named)
    for model, first, second in ((tuples, 0, 1), (tuples, "0", "1"), (named, "draft", "final")):
        assert check(model, output=first).clean
        assert not check(model, output=second).clean
    with pytest.raises(InputError, match=r"returned nothing \[B, T, V\] that is called 'third'.* draft: .*, final: "):
        check(named, output="third")


def test_a_tensor_of_another_length_than_the_text_is_not_taken_for_logits() -> None:
    def with_summary(ids: Tensor) -> tuple[Tensor, Tensor]:
        return _running_mean(ids)[:, :7], _running_mean(ids)

    report = check(with_summary)
    assert report.clean
    assert report.vocab_size == VOCABULARY


@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(2, 61).long())]
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_scripts_are_checked_though_nothing_in_them_can_be_named(compiled: Callable[[nn.Module], Any]) -> None:
    class Plain(nn.Module):
        def __init__(self, leaky: bool) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
            self.convolution = nn.Conv1d(WIDTH, WIDTH, 3 if leaky else 1, padding=1 if leaky else 0)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.convolution(self.embedding(ids).transpose(1, 2)).transpose(1, 2))

    torch.manual_seed(0)
    assert not check(compiled(Plain(leaky=True))).clean
    assert check(compiled(Plain(leaky=False))).clean


# What is said, and what is left as it was.


def test_the_assertion_reads_as_a_sentence() -> None:
    expected = (
        r"the model is not causal, so its perplexity would mean nothing: later tokens change earlier predictions "
        r"\(most when those from position \d+ on are replaced\) "
        r"\(check 'future': 0\.\d+ std of the logits, tolerance 1e-04\); "
        r"it arises in mixer\.norm \(GroupNorm\); path: mixer\.norm -> after -> head -> logits"
    )
    with pytest.raises(LeakError, match=f"^{expected}$"):
        assert_causal(planted("GroupNorm over time"))


def test_the_report_reads_as_a_table_and_as_json() -> None:
    seen: list[Result] = []
    report = check(planted("mean over the batch"), seen=seen.append)
    assert seen == report.results
    text = str(report)
    assert "TinyLM: 5 rows of 61 tokens below 50, float32 on cpu" in text
    assert re.search(r"LEAK \(row alone\): row \d alone gives other predictions than the same row among others", text)
    assert "    arises in mixer (OverBatch); path: mixer -> after -> head -> logits" in text
    assert "cache                      -          -  not checked: the model has no generate method" in text
    record = report.as_dict()
    assert record["clean"] is False
    assert {"check", "verdict", "change", "tolerance", "unit", "meaning", "location"} == record["checks"][0].keys()
    assert record["checks"][1]["location"]["module"] == "mixer"
    assert "no leak found within 2 tokens in float32 by 4 checks: future, batch, row alone, length" in str(
        check(_running_mean, rows=4, length=2)
    )


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = planted("behind a zero projection").train()
    model.mixer.attention.query.eval()  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    norm = planted("BatchNorm over time")
    buffers = {name: value.clone() for name, value in norm.state_dict().items()}
    buffered: Any = CLEAN["buffers"]()
    average = buffered.mixer.average
    before = torch.random.get_rng_state()
    check(model)
    check(norm)
    check(buffered)
    assert buffered.mixer.average is average
    assert not average.any()
    assert torch.equal(before, torch.random.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in norm.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_number_formats_have_tolerances_of_their_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    report = check(CLEAN["Llama"]().to(dtype))
    assert report.clean, report
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert not check(planted("symmetric convolution").to(dtype)).clean
    assert results(report)["future"].tolerance != 1e-4


def test_rounding_that_a_model_amplifies_is_no_leak() -> None:
    """A sharp function of a sum that another shape takes in another order: far above rounding, and still no leak."""

    class Amplifying(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            products = (
                state @ torch.ones(WIDTH, WIDTH) if len(state) > 1 else state.sum(-1, keepdim=True).expand_as(state)
            )
            return torch.sin(1e3 * products)

    torch.manual_seed(0)
    report = check(TinyLM(Amplifying(), strength=1.0))
    found = results(report)["row alone"]
    assert found.verdict == "ok", report
    assert found.change is not None
    assert found.change > 1e-4
    assert report.rounding is not None
    assert report.rounding > 1e-4
    assert found.tolerance == pytest.approx(10 * report.rounding)
    assert results(report)["future"].tolerance == 1e-4


def test_in_a_format_too_coarse_to_tell_only_passes_of_one_shape_are_compared() -> None:
    torch.manual_seed(0)
    model = CLEAN["Llama"]()
    for layer in model.model.layers:  # type: ignore[union-attr, operator]
        layer.self_attn.q_proj.weight.data *= 30
    report = check(model.to(torch.bfloat16))
    assert results(report)["length"].verdict == "skipped"
    assert "in bfloat16 may be a leak or nothing but rounding; check it in float32" in results(report)["length"].meaning
    assert results(report)["future"].change == 0.0
    assert results(report)["batch"].change == 0.0


def test_a_leak_that_is_small_in_a_coarse_format_is_not_passed() -> None:
    weak = planted("weak")
    assert not check(weak).clean
    with pytest.raises(InputError, match=r"'future' could not be finished: it moved by .* check it in float32"):
        check(weak.to(torch.bfloat16))


def test_what_a_model_generates_by_default_does_not_disturb_the_cache_check() -> None:
    """Tokens at which it stops, beams, a limit of time or length: all from the checkpoint's generation_config."""
    torch.manual_seed(0)
    model: Any = CLEAN["Llama"]()
    model.generation_config.eos_token_id = list(range(3, VOCABULARY))
    model.generation_config.num_beams = 2
    model.generation_config.max_time = 1e-6
    own = model.generation_config
    report = check(model)
    assert results(report)["cache"].verdict == "ok", report
    assert model.generation_config is own


def test_special_tokens_are_not_drawn() -> None:
    """A model may take padding, beginning and end for what they are, wherever they stand."""
    drawn: set[int] = set()

    class Watching(MuForCausalLM):
        def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
            drawn.update(input_ids.flatten().tolist())
            return super().forward(input_ids, **inputs)

    check(Watching(MuConfig(vocab_size=12, num_hidden_layers=1, pad_token_id=5, bos_token_id=7, eos_token_id=[8, 9])))
    assert drawn == set(range(12)) - {5, 7, 8, 9}


class BackwardThatFails(torch.autograd.Function):
    """As packages have that write their own, and only for training."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise TypeError("no backward pass in eval mode")


def test_a_backward_pass_that_fails_leaves_the_other_checks_standing() -> None:
    class Own(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return BackwardThatFails.apply(state)

    torch.manual_seed(0)
    report = check(TinyLM(Own()))
    found = results(report)
    assert found["gradient"].verdict == "skipped"
    assert "TypeError: no backward pass in eval mode" in found["gradient"].meaning
    assert found["future"].verdict == found["batch"].verdict == "ok"
