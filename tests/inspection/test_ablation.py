"""Blocks switched off or replaced, held against the reference, whose blocks are set by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceMu, lively_model, reference_of
from reference.model import block_ranges
from torch import Tensor

from mu_sota import MuForCausalLM
from mu_sota.inspection.ablation import blocks_off, blocks_replaced, readers
from mu_sota.inspection.tracing import trace
from mu_sota.model.blocks import BLOCKS, split_blocks
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


@torch.no_grad()
def test_a_block_that_is_replaced_by_its_own_values_changes_nothing(model: MuForCausalLM) -> None:
    states = trace(model, IDS).states
    values = {place: split_blocks(state) for place, state in enumerate(states)}
    before = model(torch.tensor([IDS])).logits
    with blocks_replaced(model, NAMES, values):
        assert torch.equal(model(torch.tensor([IDS])).logits, before)


@settings(max_examples=12)
@given(names=st.lists(st.sampled_from(NAMES), unique=True), places=st.sets(st.integers(0, 2)))
@torch.no_grad()
def test_named_blocks_alone_are_replaced_at_the_given_places_alone(names: list[str], places: set[int]) -> None:
    """At a place that is left alone, the blocks are what the layer before it made of what was replaced."""
    model = lively_model()
    values = {place: torch.randn(len(IDS), 16, 4, dtype=torch.float64) for place in range(3)}
    reference = reference_of(model)
    assert reference.positions is not None
    inputs = torch.tensor([IDS])
    flat = reference.tokens(inputs) + reference.positions(torch.arange(len(IDS)))
    matrix = flat.unflatten(-1, (8, 8))
    states = []
    for place in range(3):
        if place:
            matrix = reference.layers[place - 1](inputs, matrix)[0]
        matrix = matrix.clone()
        for name in names if place in places else []:
            block = NAMES.index(name)
            top, bottom, left, right = block_ranges(8)[block]
            matrix[0, :, top:bottom, left:right] = values[place][:, block].unflatten(-1, (2, 2))
        states.append(matrix[0])
    with blocks_replaced(model, names, {place: values[place] for place in places}):
        seen = trace(model, IDS)
    for place, state in enumerate(states):
        for position in range(len(IDS)):
            torch.testing.assert_close(seen.matrix(position, place), state[position], **CLOSE)


@torch.no_grad()
def test_of_two_replacements_of_a_block_the_later_one_counts(model: MuForCausalLM) -> None:
    one, two = ({1: torch.tensor(value)} for value in (1.0, 2.0))
    with blocks_replaced(model, ["I"], two):
        expected = model(torch.tensor([IDS])).logits
    with blocks_replaced(model, ["I"], one), blocks_replaced(model, ["I"], two):
        assert torch.equal(model(torch.tensor([IDS])).logits, expected)


def test_places_are_the_layers_and_the_final_norm(model: MuForCausalLM) -> None:
    assert readers(model) == [model.model.layers[0], model.model.layers[1], model.model.norm]


def test_nothing_is_hooked_on_for_no_blocks(model: MuForCausalLM) -> None:
    before = hooks(model)
    with blocks_off(model, []):
        assert hooks(model) == before
    with blocks_off(model, ["I"]):
        assert hooks(model) == before + 3
