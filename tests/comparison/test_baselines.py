"""The standard Transformers: their loss is the library's, their sizes are what published arithmetic says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from mu_sota import MuConfig
from mu_sota.comparison.baselines import (
    FAMILIES,
    TOLERANCE,
    Gpt2Style,
    LlamaStyle,
    Shape,
    build,
    config_from_dict,
    count_flops,
    count_parameters,
    fit,
    load,
)
from mu_sota.leakcheck.checks import assert_causal
from mu_sota.model.errors import InputError

LIKE = MuConfig(vocab_size=300, num_hidden_layers=2, max_position_embeddings=32)


def small(name: str) -> PreTrainedConfig:
    return FAMILIES[name].config(Shape(layers=2, width=64, inner=96), LIKE)


def pair(name: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """A baseline and the library's own model with the same weights."""
    torch.manual_seed(0)
    ours = build(small(name), dropout)
    theirs = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[name](ours.config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_from_chunks_is_that_of_the_library(name: str) -> None:
    ours, theirs = pair(name)
    tokens = torch.randint(300, (3, 33), generator=torch.Generator().manual_seed(1))
    ids, labels = tokens[:, :-1], tokens[:, 1:].clone()
    labels[0, :5] = -100
    output = ours.train()(input_ids=ids, labels=labels, shift_labels=labels, skip_logits=True)
    logits = theirs.train()(input_ids=ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert output.num_correct == ((logits.argmax(-1) == labels) & (labels != -100)).sum()
    summed = ours(input_ids=ids, shift_labels=labels, num_items_in_batch=7).loss
    assert summed.item() == pytest.approx(expected.item() * (labels != -100).sum().item() / 7, rel=1e-5)

    output.loss.backward()
    expected.backward()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_is_learned(name: str) -> None:
    """Llama of the library leaves out the padding token, which in a vocabulary of words is the end of a line."""
    torch.manual_seed(0)
    model = build(FAMILIES[name].config(Shape(2, 64, 96), MuConfig(vocab_size=9, pad_token_id=3)), 0.0)
    with torch.no_grad():
        assert model.get_input_embeddings().weight.abs().sum(1).min() > 0
    model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(9, 64))  # untied, to see the input's alone
    ids = torch.arange(9)[None]
    model(input_ids=ids, shift_labels=ids.flip(1)).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_without_labels_it_is_the_library_s_model(name: str) -> None:
    ours, theirs = (model.eval() for model in pair(name, dropout=0.5))
    ids = torch.arange(20)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert torch.equal(
        ours.generate(ids, max_new_tokens=5, do_sample=False), theirs.generate(ids, max_new_tokens=5, do_sample=False)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_acts_on_the_embedding_and_on_both_parts_of_every_layer(name: str) -> None:
    """In the mean, by as many zeros as asked for, and in training alone."""
    model = build(small(name), dropout=0.25).train()
    stream = model.base_model
    first = (stream.h if name == "gpt2" else stream.layers)[0]
    embedded = stream.drop if name == "gpt2" else stream.embed_tokens
    shares = []

    def note(module: Any, arguments: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        shares.append((output == 0).float().mean().item())

    attention = first.attn.resid_dropout if name == "gpt2" else first.self_attn.o_proj
    for place in (embedded, attention, first.mlp):
        place.register_forward_hook(note)
    ids = torch.randint(300, (8, 32), generator=torch.Generator().manual_seed(0))
    model(ids)
    assert shares == pytest.approx([0.25] * 3, abs=0.02)
    shares.clear()
    model.eval()(ids)
    assert max(shares) < 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_the_leak_check_asks_a_baseline_all_that_it_asks_mu(name: str) -> None:
    """The padding check needs a model that takes a mask by name."""
    asked = {result.check for result in assert_causal(build(small(name), 0.1)).results if result.verdict == "ok"}
    assert asked == {result.check for result in assert_causal(build(LIKE, 0.1)).results if result.verdict == "ok"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_is_loaded_as_what_it_was(name: str, tmp_path: Path) -> None:
    model = build(small(name), dropout=0.1).eval()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is {"gpt2": Gpt2Style, "llama": LlamaStyle}[name]
    assert torch.equal(loaded(torch.arange(9)[None]).logits, model(torch.arange(9)[None]).logits)
    again = config_from_dict(model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()


def test_parameters_of_the_preset_are_those_of_its_arithmetic() -> None:
    layer_without_table = 1_280 + 16_640 + 33_088 + 256 + (801_376 - 800_000)
    counted = count_parameters(MuConfig.from_preset("mu-sota"))
    assert counted == (26_946_256, 24 * layer_without_table + 128, 24 * 800_000)


def test_parameters_of_gpt2_are_the_published_ones() -> None:
    """124 M, and 85 M without the embeddings."""
    total, outside, tables = count_parameters(GPT2Config())
    assert (total, outside, tables) == (124_439_808, 124_439_808 - (50_257 + 1_024) * 768, 0)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("gpt2", 4 * 64 * 64 + 2 * 64 * 96), ("llama", 4 * 64 * 64 + 3 * 64 * 96)],
)
def test_flops_are_six_a_weight_and_twelve_for_attention(name: str, weights: int) -> None:
    """Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T a token. The backward pass of fused attention makes the
    scores again, which adds half of its forward pass."""
    layers, length = 2, 32
    attention = layers * 64 * length
    counted = count_flops(small(name), length)
    expected = 6 * (layers * weights + 64 * 300) + 12 * attention + 2 * attention
    assert counted == pytest.approx(expected, rel=1e-4)  # older releases multiply matrices for Llama's rotations, too


MEASURES: dict[str, Callable[[PreTrainedConfig], int]] = {
    "total": lambda config: count_parameters(config).total,
    "outside": lambda config: count_parameters(config).outside,
    "flops": lambda config: count_flops(config, 32),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fitted_model_is_within_half_a_percent_when_counted_again(name: str, measure: str) -> None:
    count = MEASURES[measure]
    like = MuConfig(vocab_size=2000, num_hidden_layers=4, max_position_embeddings=32)
    config = fit(FAMILIES[name], like, count, count(like))
    assert abs(count(config) / count(like) - 1) <= TOLERANCE == 0.005
    real = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[name](config)
    if measure == "total":
        assert abs(real.num_parameters() / MEASURES["total"](like) - 1) <= TOLERANCE
    assert (config.vocab_size, config.max_position_embeddings) == (2000, 32)
    assert config.bos_token_id == like.bos_token_id
    assert real.get_output_embeddings().weight is real.get_input_embeddings().weight, "tied"


@settings(max_examples=12, deadline=None)
@given(target=st.integers(300_000, 30_000_000), name=st.sampled_from(sorted(FAMILIES)))
def test_any_size_can_be_met_in_a_usual_shape(target: int, name: str) -> None:
    config: Any = fit(FAMILIES[name], LIKE, MEASURES["outside"], target)
    assert abs(count_parameters(config).outside / target - 1) <= TOLERANCE
    inner = config.n_inner if name == "gpt2" else config.intermediate_size
    assert 0.7 < inner / config.hidden_size / FAMILIES[name].usual_inner < 1.5
    assert 8 < config.hidden_size / config.num_hidden_layers < 128


def test_what_is_too_small_for_a_standard_transformer_is_said() -> None:
    with pytest.raises(InputError, match=r"no GPT-2 model .* 0\.5% of 100 .* larger MU model"):
        fit(FAMILIES["gpt2"], LIKE, MEASURES["total"], 100)


def test_a_llama_of_the_library_has_no_dropout_in_its_configuration() -> None:
    """Where that changes, the hooks of `LlamaStyle` would act twice."""
    assert not hasattr(LlamaConfig(), "dropout")
    assert not [m for m in LlamaForCausalLM(small("llama")).modules() if isinstance(m, torch.nn.Dropout)]
