"""Blocks switched off, held against the reference, whose blocks are set to 0 by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceMu, lively_model, reference_of
from reference.model import block_ranges
from torch import Tensor

from mu_sota import MuForCausalLM
from mu_sota.inspection.ablation import blocks_off
from mu_sota.inspection.tracing import trace
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError

NAMES = [block.name for block in BLOCKS]
IDS = [3, 17, 3, 30, 8, 36, 0, 21, 5]
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def model() -> MuForCausalLM:
    return lively_model()


def hooks(model: MuForCausalLM) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def without(reference: ReferenceMu, ids: list[int], off: list[str]) -> tuple[Tensor, list[Tensor]]:
    """Logits and states of the reference whose named blocks are set to 0 by hand before everything that reads them."""

    def silenced(matrix: Tensor) -> Tensor:
        matrix = matrix.clone()
        for name in off:
            top, bottom, left, right = block_ranges(matrix.shape[-1])[NAMES.index(name)]
            matrix[..., top:bottom, left:right] = 0
        return matrix

    inputs = torch.tensor([ids])
    assert reference.positions is not None
    flat = reference.tokens(inputs) + reference.positions(torch.arange(len(ids)))
    matrix = silenced(flat.unflatten(-1, (reference.matrix_size, reference.matrix_size)))
    states = [matrix[0]]
    for layer in reference.layers:
        matrix = silenced(layer(inputs, matrix)[0])
        states.append(matrix[0])
    return reference.head(reference.norm(matrix.flatten(-2)))[0], states


@settings(max_examples=12)
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
def test_blocks_are_off_in_a_cached_continuation_too(model: MuForCausalLM) -> None:
    off, ids = ["I", "K", "X"], list(IDS)
    reference = reference_of(model)
    for _ in range(8):
        ids.append(int(without(reference, ids, off)[0][-1].argmax()))
    inputs = torch.tensor([IDS])
    how: dict[str, Any] = {"attention_mask": torch.ones_like(inputs), "max_new_tokens": 8, "do_sample": False}
    with_all = model.generate(inputs, **how)
    for use_cache in (True, False):
        with blocks_off(model, off):
            found = model.generate(inputs, use_cache=use_cache, **how)
        assert found[0].tolist() == ids
        assert found.tolist() != with_all.tolist()


@torch.no_grad()
def test_blocks_are_on_again_afterwards_also_after_an_error(model: MuForCausalLM) -> None:
    before = model(torch.tensor([IDS])).logits
    hooks_before = hooks(model)
    with pytest.raises(ValueError, match="positions"), blocks_off(model, NAMES):
        model(torch.zeros(1, 25, dtype=torch.long))
    assert torch.equal(model(torch.tensor([IDS])).logits, before)
    assert hooks(model) == hooks_before


@torch.no_grad()
def test_contexts_of_blocks_off_add_up(model: MuForCausalLM) -> None:
    with blocks_off(model, ["I", "T"]):
        both = model(torch.tensor([IDS])).logits
    with blocks_off(model, ["I"]), blocks_off(model, ["T"]):
        assert torch.equal(model(torch.tensor([IDS])).logits, both)


def test_an_unknown_block_is_refused(model: MuForCausalLM) -> None:
    hooks_before = hooks(model)
    with (
        pytest.raises(InputError, match=r"no block is named 'Q'; the blocks are I, S, C1, .*, X$"),
        blocks_off(model, ["I", "Q"]),
    ):
        pass
    assert hooks(model) == hooks_before
