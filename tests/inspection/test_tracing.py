"""Traces and ablations, held against the reference with its full matrices and against hand-written loops."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceMu, lively_model, reference_of, small_model
from reference.model import block_ranges, cut
from torch import Tensor

from mu_sota import MuForCausalLM
from mu_sota.inspection.tracing import ALTERNATIVES, blocks_off, trace
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError

NAMES = [block.name for block in BLOCKS]
IDS = [3, 17, 3, 30, 8, 36, 0, 21, 5]
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def model() -> MuForCausalLM:
    return lively_model()


def without(reference: ReferenceMu, ids: list[int], off: list[str]) -> tuple[Tensor, list[Tensor]]:
    """Logits and states of the reference whose named blocks are set to 0 by hand before everything that reads them."""

    def silenced(matrix: Tensor) -> Tensor:
        matrix = matrix.clone()
        for name in off:
            top, bottom, left, right = block_ranges(matrix.shape[-1])[NAMES.index(name)]
            matrix[..., top:bottom, left:right] = 0
        return matrix

    inputs = torch.tensor([ids])
    flat = reference.tokens(inputs) + reference.positions(torch.arange(len(ids)))
    matrix = silenced(flat.unflatten(-1, (reference.matrix_size, reference.matrix_size)))
    states = [matrix[0]]
    for layer in reference.layers:
        matrix = silenced(layer(inputs, matrix)[0])
        states.append(matrix[0])
    return reference.head(reference.norm(matrix.flatten(-2)))[0], states


# --- One pass -------------------------------------------------------------------------------------------------------


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
    """The matrices come from 17 modules of `torch` a layer; hooks record what goes in, the modules run again."""
    reference = reference_of(model)
    states = reference(torch.tensor([IDS])).states
    seen = trace(model, IDS)
    hidden = torch.ones(len(IDS), len(IDS), dtype=torch.bool).triu(diagonal=1)
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


def test_a_trace_keeps_nothing_but_what_it_shows(model: MuForCausalLM) -> None:
    seen = trace(model, IDS)
    for tensor in (
        seen.states,
        seen.sensitivities,
        seen.log_probs,
        seen.top_log_probs,
        *(each for layer in (*seen._cross, *seen._block) for each in layer),
    ):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_a_text_s_nll_is_the_model_s_loss(model: MuForCausalLM) -> None:
    inputs = torch.tensor([IDS])
    nll = trace(model, IDS).nll
    assert nll.shape == (len(IDS) - 1,)
    assert nll.mean().item() == pytest.approx(model(inputs, labels=inputs).loss.item())


def test_nothing_stays_hooked(model: MuForCausalLM) -> None:
    trace(model, IDS)
    with blocks_off(model, ["I"]):
        pass
    assert hooks(model) == 0


def hooks(model: MuForCausalLM) -> int:
    watched = [
        module
        for layer in model.model.layers
        for module in (layer, layer.cross_attention.qkv, layer.block_attention.qkv)
    ]
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in (*watched, model.model.norm)) - sum(
        len(layer._forward_hooks)
        for layer in model.model.layers  # `transformers` records hidden states there
    )


# --- Without some blocks ---------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(off=st.lists(st.sampled_from(NAMES), unique=True), seed=st.integers(0, 3))
@torch.no_grad()
def test_blocks_are_off_between_all_layers(off: list[str], seed: int) -> None:
    model = lively_model(seed)
    logits, states = without(reference_of(model), IDS, off)
    with blocks_off(model, off):
        torch.testing.assert_close(model(torch.tensor([IDS])).logits[0], logits, **CLOSE)
        seen = trace(model, IDS)
    for layer, state in enumerate(states):
        torch.testing.assert_close(seen.matrix(4, layer), state[4], **CLOSE)
    own = logits.log_softmax(-1)[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])]
    torch.testing.assert_close(seen.nll, -own, **CLOSE)


@torch.no_grad()
def test_a_cached_continuation_is_without_them_too(model: MuForCausalLM) -> None:
    off, ids = ["I", "K", "X"], list(IDS)
    reference = reference_of(model)
    for _ in range(8):
        ids.append(int(without(reference, ids, off)[0][-1].argmax()))
    inputs = torch.tensor([IDS])
    how: dict[str, Any] = {"attention_mask": torch.ones_like(inputs), "max_new_tokens": 8, "do_sample": False}
    whole = model.generate(inputs, **how)
    for use_cache in (True, False):
        with blocks_off(model, off):
            found = model.generate(inputs, use_cache=use_cache, **how)
        assert found[0].tolist() == ids
        assert found.tolist() != whole.tolist()


@torch.no_grad()
def test_the_model_is_as_before_afterwards_also_after_an_error(model: MuForCausalLM) -> None:
    before = model(torch.tensor([IDS])).logits
    with pytest.raises(ValueError, match="positions"), blocks_off(model, NAMES):
        model(torch.zeros(1, 25, dtype=torch.long))
    assert torch.equal(model(torch.tensor([IDS])).logits, before)
    assert hooks(model) == 0


@torch.no_grad()
def test_contexts_add_up(model: MuForCausalLM) -> None:
    with blocks_off(model, ["I", "T"]):
        both = model(torch.tensor([IDS])).logits
    with blocks_off(model, ["I"]), blocks_off(model, ["T"]):
        assert torch.equal(model(torch.tensor([IDS])).logits, both)


def test_an_unknown_block_is_refused(model: MuForCausalLM) -> None:
    with (
        pytest.raises(InputError, match=r"no block is named 'Q'; the blocks are I, S, C1, .*, X$"),
        blocks_off(model, ["I", "Q"]),
    ):
        pass
    assert hooks(model) == 0
