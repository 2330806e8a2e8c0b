"""The leak check finds and locates every planted leak, passes causal models, and refuses what it cannot check."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from planted import CLEAN, LEAKS, VOCABULARY, WIDTH, Attention, TinyLM, embed, planted, results, running_mean
from torch import Tensor, nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.checks import assert_causal, check

# Planted leaks, causal models, and models of transformers.


@pytest.mark.parametrize("name", LEAKS)
def test_planted_leak_is_found_and_located(name: str) -> None:
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


def test_batch_leak_is_not_reported_as_future_leak() -> None:
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
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "Gemma2": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
    "Mamba": {"state_size": 4},
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


@pytest.mark.parametrize(
    ("leak", "expected"),
    [
        (lambda ids: embed(ids.roll(-1, 1)), "future"),
        (lambda ids: embed(ids).mean(1, keepdim=True), "future"),
        (lambda ids: embed(ids).mean(0, keepdim=True), "batch"),
        (lambda ids: embed(ids) / ids.shape[1], "length"),
        (lambda ids: embed(ids) * (len(ids) == 1), "row alone"),
        (lambda ids: embed(ids.flip(0)), "batch"),
    ],
)
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_a_leak_in_a_function_is_found(leak: Callable[[Tensor], Tensor], expected: str, strength: float) -> None:
    def leaky(ids: Tensor) -> Tensor:
        return running_mean(ids) + strength * leak(ids)

    report = check(leaky)
    assert results(report)[expected].verdict == ("differs" if expected == "length" else "leak")
    assert results(report)["gradient"].verdict == "skipped"
    assert check(running_mean).clean


def test_a_function_that_calls_modules_is_traced_into_them() -> None:
    model = planted("symmetric convolution").eval()
    found = results(check(lambda ids: 1 * model(ids)))["future"]
    assert found.location is not None
    assert found.location.module == "TinyLM.mixer.convolution"
    assert found.location.path == ["TinyLM.mixer.convolution", "TinyLM.after", "TinyLM.head"]


def test_modules_in_a_function_are_checked_in_both_modes_perturbed_and_restored() -> None:
    model = planted("BatchNorm over time").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = check(lambda ids: (model(ids),))
    assert [leak.check for leak in report.findings] == ["future (training)", "batch (training)"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    dropping = TinyLM(nn.Sequential(Attention(0), nn.Dropout(0.5))).train()
    assert check(lambda ids: 1 * dropping(ids)).clean
    zero_initialised = planted("behind a zero projection")
    assert not check(lambda ids: 1 * zero_initialised(ids)).clean


# Models that cannot be checked, and unusual ones.


@pytest.mark.parametrize("function", [check, assert_causal])
def test_unknown_settings_are_refused_by_name(function: Any) -> None:
    with pytest.raises(TypeError, match="lenght"):
        function(running_mean, lenght=20)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda ids: running_mean(ids) * math.nan, "hold NaN"),
        (lambda ids: torch.zeros(*ids.shape, 9), "the same logits whatever the tokens"),
        (lambda ids: running_mean(ids)[:, -1:], r"shape \[5, 1, 50\] for ids of shape \[5, 61\]"),
        (lambda ids: running_mean(ids).argmax(-1), "did not return logits"),
        (lambda ids: nn.functional.pad(ids, (0, 4)) @ ids, "could not be called with token ids"),
        ("gpt2", "a model to check is a function"),
    ],
)
def test_unusable_model_is_refused(model: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(model)


def test_model_that_writes_to_its_ids_gets_a_copy() -> None:
    model = CLEAN["attention"]()

    def shifting(ids: Tensor) -> Tensor:
        ids[:, 1:] = ids[:, :-1].clone()
        ids[:, 0] = 0
        return model(ids)

    assert check(shifting, VOCABULARY).clean


@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(2, 61).long())]
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_script_is_checked_without_a_location(compiled: Callable[[nn.Module], Any]) -> None:
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


# Restored.


def test_model_and_random_state_are_restored() -> None:
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
