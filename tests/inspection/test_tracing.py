"""Traces, held against the reference with its full attention matrices."""

import math
from typing import Any

import pytest
import torch
from reference import NEW_FORM, lively_model, reference_of, small_model
from reference.model import concatenate, cut, place, rotary_attention

from mu_sota import MuForCausalLM
from mu_sota.inspection.tracing import ALTERNATIVES, trace

IDS = [3, 17, 3, 30, 8, 36, 0, 21, 5]
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
NEAR: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}  # angles are in float32


@pytest.fixture(scope="module")
def model() -> MuForCausalLM:
    return lively_model()


@pytest.mark.parametrize("matrix_size", [8, 12])
@torch.no_grad()
def test_states_and_sensitivities_are_the_reference_s(matrix_size: int) -> None:
    model = lively_model(matrix_size=matrix_size)
    expected = reference_of(model)(torch.tensor([IDS]))
    seen = trace(model, IDS)
    assert len(seen.states) == len(expected.states) == model.config.num_hidden_layers + 1
    for layer, state in enumerate(expected.states):
        for position in range(len(IDS)):
            torch.testing.assert_close(seen.matrix(position, layer), state[0, position], **CLOSE)
    for layer, sensitivity in enumerate(expected.sensitivities):
        torch.testing.assert_close(seen.sensitivities[layer], sensitivity[0], **CLOSE)


@torch.no_grad()
def test_probabilities_are_those_of_the_full_pass(model: MuForCausalLM) -> None:
    seen = trace(model, IDS)
    probabilities = reference_of(model)(torch.tensor([IDS])).logits[0].softmax(-1)
    assert math.isnan(seen.log_probs[0])
    for position, token in enumerate(IDS[1:], start=1):
        assert seen.log_probs[position].exp().item() == pytest.approx(probabilities[position - 1, token].item())
    for position, row in enumerate(probabilities):
        likeliest = sorted(range(len(row)), key=lambda token: -row[token])[:ALTERNATIVES]
        assert seen.top_ids[position].tolist() == likeliest
        torch.testing.assert_close(seen.top_log_probs[position].exp(), row[likeliest], **CLOSE)


@torch.no_grad()
def test_attention_rows_are_those_of_the_full_matrices(model: MuForCausalLM) -> None:
    """The matrices come from 17 modules of `torch` a layer; hooks record their inputs, the modules run again."""
    reference = reference_of(model)
    states = reference(torch.tensor([IDS])).states
    seen = trace(model, IDS)
    hidden = torch.ones(len(IDS), len(IDS), dtype=torch.bool).triu(diagonal=1)
    layer: Any
    for number, layer in enumerate(reference.layers, start=1):
        outputs = []
        for block, attention in enumerate(layer.block_attentions):
            values = cut(states[number - 1], block)
            output, matrix = attention(values, values, values, attn_mask=hidden, need_weights=True)
            outputs.append(output)
            for position in range(len(IDS)):
                row = seen.attention(position, number).block[block]
                torch.testing.assert_close(row, matrix[0, position, : position + 1], **CLOSE)
        joined = torch.cat(outputs, dim=-1)
        _, matrices = layer.cross_attention(
            joined, joined, joined, attn_mask=hidden, need_weights=True, average_attn_weights=False
        )
        for position in range(len(IDS)):
            rows = seen.attention(position, number).cross
            torch.testing.assert_close(rows, matrices[0, :, position, : position + 1], **CLOSE)


@torch.no_grad()
def test_attention_rows_with_rotary_positions() -> None:
    """They are those of turned queries and keys, read through the norm before each part."""
    model = lively_model(**NEW_FORM)
    reference = reference_of(model)
    states = reference(torch.tensor([IDS])).states
    seen = trace(model, IDS)
    layer: Any
    for number, layer in enumerate(reference.layers, start=1):
        state = states[number - 1]
        read = place(layer.norm_0(concatenate(state)), state.shape[-1])
        results = [rotary_attention(attention, cut(read, b)) for b, attention in enumerate(layer.block_attentions)]
        joined = concatenate(state) + torch.cat([output for output, _ in results], dim=-1)
        _, cross = rotary_attention(layer.cross_attention, layer.norm_1(joined))
        for position in range(len(IDS)):
            rows = seen.attention(position, number)
            for block, (_, weights) in enumerate(results):
                torch.testing.assert_close(rows.block[block], weights[0, 0, position, : position + 1], **NEAR)
            for head, row in enumerate(rows.cross):
                torch.testing.assert_close(row, cross[0, head, position, : position + 1], **NEAR)


def test_a_text_of_one_token_can_be_traced(model: MuForCausalLM) -> None:
    seen = trace(model, [4])
    assert seen.states.shape == (3, 1, 64)
    assert seen.attention(0, 2).cross.tolist() == [[1.0]] * 4
    assert seen.nll.shape == (0,)


def test_probabilities_of_a_model_in_bfloat16_are_in_float32() -> None:
    """In bfloat16, log-probabilities near 1 have three digits."""
    seen = trace(small_model().bfloat16(), IDS)
    assert seen.log_probs.dtype == seen.top_log_probs.dtype == torch.float32
    assert seen.states.dtype == torch.bfloat16


def test_a_trace_holds_no_memory_beyond_its_values(model: MuForCausalLM) -> None:
    seen = trace(model, IDS)
    for tensor in (
        seen.states,
        seen.sensitivities,
        seen.log_probs,
        seen.top_log_probs,
        *(each for layer in (*seen._cross, *seen._block) for each in layer),
    ):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_the_mean_nll_is_the_loss_of_the_model(model: MuForCausalLM) -> None:
    inputs = torch.tensor([IDS])
    nll = trace(model, IDS).nll
    assert nll.shape == (len(IDS) - 1,)
    assert nll.mean().item() == pytest.approx(model(inputs, labels=inputs).loss.item())


def test_a_trace_leaves_no_hook(model: MuForCausalLM) -> None:
    trace(model, IDS)  # the first pass of a model adds hooks of `transformers`, which stay
    before = hooks(model)
    trace(model, IDS)
    assert hooks(model) == before


def hooks(model: MuForCausalLM) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
