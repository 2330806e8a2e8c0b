"""The standard Transformers: their loss and their predictions are the library's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from mu_sota import MuConfig
from mu_sota.comparison.baselines import (
    FAMILIES,
    Gpt2Style,
    LlamaStyle,
    Shape,
    build,
    config_from_dict,
    load,
)
from mu_sota.leakcheck.checks import assert_causal

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
def test_every_token_gets_a_gradient_padding_too(name: str) -> None:
    """Llama of the library leaves out the padding token, which in a vocabulary of words is the end of a line."""
    torch.manual_seed(0)
    model: Any = build(FAMILIES[name].config(Shape(2, 64, 96), MuConfig(vocab_size=9, pad_token_id=3)), 0.0)
    with torch.no_grad():
        assert model.get_input_embeddings().weight.abs().sum(1).min() > 0
    model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(9, 64))  # untied, to see the input's alone
    ids = torch.arange(9)[None]
    model(input_ids=ids, shift_labels=ids.flip(1)).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_without_labels_a_baseline_is_the_library_s_model(name: str) -> None:
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
    for module in (embedded, attention, first.mlp):
        module.register_forward_hook(note)
    ids = torch.randint(300, (8, 32), generator=torch.Generator().manual_seed(0))
    model(ids)
    assert shares == pytest.approx([0.25] * 3, abs=0.02)
    shares.clear()
    model.eval()(ids)
    assert max(shares) < 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_the_leak_check_runs_the_same_checks_on_a_baseline_as_on_mu(name: str) -> None:
    """The padding check needs a model that takes a mask by name."""
    checks = {result.check for result in assert_causal(build(small(name), 0.1)).results if result.verdict == "ok"}
    assert checks == {result.check for result in assert_causal(build(LIKE, 0.1)).results if result.verdict == "ok"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_baseline_is_loaded_with_its_class_and_weights(name: str, tmp_path: Path) -> None:
    model = build(small(name), dropout=0.1).eval()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is {"gpt2": Gpt2Style, "llama": LlamaStyle}[name]
    assert torch.equal(loaded(torch.arange(9)[None]).logits, model(torch.arange(9)[None]).logits)
    again = config_from_dict(model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()


def test_a_llama_of_the_library_has_no_dropout_in_its_configuration() -> None:
    """Where that changes, the hooks of `LlamaStyle` would act twice."""
    assert not hasattr(LlamaConfig(), "dropout")
    config: Any = small("llama")
    assert not [m for m in LlamaForCausalLM(config).modules() if isinstance(m, torch.nn.Dropout)]
