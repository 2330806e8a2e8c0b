"""Readouts of middle layers and of single blocks, held against the reference's states, norm and head."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NEW_FORM, lively_model, reference_of, small_model
from reference.model import block_ranges
from torch import Tensor, nn

from mu_sota import MuForCausalLM
from mu_sota.inspection import lens
from mu_sota.inspection.ablation import blocks_off
from mu_sota.inspection.lens import logit_lens
from mu_sota.inspection.tracing import ALTERNATIVES

IDS = [3, 17, 3, 30, 8, 36, 0, 21, 5]
NEAR: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}  # rotary angles are in float32


@pytest.fixture(scope="module")
def model() -> MuForCausalLM:
    return lively_model()


def likeliest(scores: Tensor, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda token: -scores[token])[:count]


@torch.no_grad()
def test_the_last_readout_is_the_model_s_own(model: MuForCausalLM) -> None:
    found = logit_lens(model, IDS, range(len(IDS)))
    expected = model(torch.tensor([IDS])).logits[0].log_softmax(-1).topk(ALTERNATIVES)
    assert torch.equal(found.top_ids[-1], expected.indices)
    torch.testing.assert_close(found.top_log_probs[-1], expected.values)


@pytest.mark.parametrize("form", [{}, {"matrix_size": 12}, NEW_FORM], ids=["specified", "larger", "new form"])
@torch.no_grad()
def test_every_layer_is_read_out_by_norm_and_head(form: dict[str, Any]) -> None:
    model = lively_model(**form)
    reference = reference_of(model)
    found = logit_lens(model, IDS, [2, 8], top=4)
    assert found.top_ids.shape == found.top_log_probs.shape == (3, 2, 4)
    assert found.positions.tolist() == [2, 8]
    for layer, matrices in enumerate(reference(torch.tensor([IDS])).states):
        for index, position in enumerate([2, 8]):
            row = reference.head(reference.norm(matrices[0, position].flatten())).log_softmax(-1)
            assert found.top_ids[layer, index].tolist() == likeliest(row, 4)
            torch.testing.assert_close(found.top_log_probs[layer, index], row[likeliest(row, 4)], **NEAR)


@pytest.mark.parametrize("form", [{}, NEW_FORM], ids=["specified", "new form"])
@torch.no_grad()
def test_a_block_is_read_out_among_the_means_of_all_others(form: dict[str, Any]) -> None:
    model = lively_model(**form)
    reference = reference_of(model)
    found = logit_lens(model, IDS, [7, 0], top=3)
    assert found.block_ids.shape == found.block_rises.shape == (3, 2, 16, 3)
    for layer, matrices in enumerate(reference(torch.tensor([IDS])).states):
        mean = sum(matrices[0], start=torch.zeros(8, 8)) / len(IDS)
        for index, position in enumerate([7, 0]):
            for block, (top, bottom, left, right) in enumerate(block_ranges(8)):
                matrix = mean.clone()
                matrix[top:bottom, left:right] = matrices[0, position, top:bottom, left:right]
                both = torch.stack([matrix.flatten(), mean.flatten()])
                alone, of_means = reference.head(reference.norm(both))
                rises = alone - of_means
                assert found.block_ids[layer, index, block].tolist() == likeliest(rises, 3)
                expected = rises[likeliest(rises, 3)]
                torch.testing.assert_close(found.block_rises[layer, index, block], expected, **NEAR)


@torch.no_grad()
def test_a_planted_block_says_the_next_token_and_no_other_says_anything() -> None:
    """Block 6 of the embedding is the token's number in four binary digits; the head reads them, and nothing else."""
    model = small_model().double()
    digits = torch.tensor([[1.0 if token >> place & 1 else -1.0 for place in range(4)] for token in range(37)])
    model.model.norm = nn.Identity()
    model.model.token_embedding.weight[:, 24:28] = digits
    assert model.model.position_embedding is not None
    model.model.position_embedding.weight.zero_()
    model.lm_head.weight.zero_()
    model.lm_head.weight[:16, 24:28] = digits[:16].roll(1, 0)  # of token n + 1: the digits of n
    found = logit_lens(model, list(range(9)), [1, 4, 8], top=1)
    assert found.top_ids[0, :, 0].tolist() == [2, 5, 9]
    assert found.block_ids[0, :, 6, 0].tolist() == [2, 5, 9]
    assert (found.block_rises[0, :, 6] > 1).all()
    assert found.block_rises[:, :, [*range(6), *range(7, 16)]].abs().max() < 1e-12


@settings(max_examples=10)
@given(positions=st.lists(st.integers(-9, 8), max_size=12), at_once=st.integers(1, 5))
def test_positions_are_read_out_each_by_itself(positions: list[int], at_once: int) -> None:
    model = lively_model()
    every = logit_lens(model, IDS, range(len(IDS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "_POSITIONS_AT_ONCE", at_once)
        found = logit_lens(model, IDS, positions)
    assert found.positions.tolist() == [position % len(IDS) for position in positions]
    for name in ("top_ids", "top_log_probs", "block_ids", "block_rises"):
        torch.testing.assert_close(getattr(found, name), getattr(every, name)[:, positions])


def test_logits_of_few_rows_are_held_at_once(model: MuForCausalLM) -> None:
    sizes: list[int] = []
    with model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output[..., 0].numel())):
        logit_lens(model, IDS * 2, range(2 * len(IDS)))
    assert max(sizes) == 8 * 16


@torch.no_grad()
def test_blocks_that_are_off_raise_nothing(model: MuForCausalLM) -> None:
    with blocks_off(model, ["I", "K"]):
        found = logit_lens(model, IDS, [4])
        expected = model(torch.tensor([IDS])).logits[0, 4].log_softmax(-1)
    torch.testing.assert_close(found.top_log_probs[-1, 0], expected.topk(ALTERNATIVES).values)
    assert found.block_rises[:, 0, [0, 7]].abs().max() < 1e-12
    assert (found.block_rises[:, 0, [1, 15], 0] > 1e-3).all()


def test_no_more_tokens_are_kept_than_there_are(model: MuForCausalLM) -> None:
    found = logit_lens(model, IDS, [1], top=1000)
    assert found.top_ids.shape == (3, 1, 37)
    assert found.block_ids.shape == (3, 1, 16, 37)


def test_readouts_of_a_model_in_bfloat16_are_in_float32() -> None:
    found = logit_lens(small_model().bfloat16(), IDS, [3])
    assert found.top_log_probs.dtype == found.block_rises.dtype == torch.float32
    assert not found.block_rises.requires_grad


def test_a_position_outside_the_text_is_refused(model: MuForCausalLM) -> None:
    with pytest.raises(IndexError):
        logit_lens(model, IDS, [9])


def test_texts_that_the_model_cannot_read_are_refused(model: MuForCausalLM) -> None:
    with pytest.raises(ValueError, match="positions"):
        logit_lens(model, [1] * 25, [0])
    with pytest.raises(ValueError, match="no tokens"):
        logit_lens(model, [], [])


def test_the_lens_leaves_no_hook(model: MuForCausalLM) -> None:
    logit_lens(model, IDS, [0])
    assert not any(module._forward_pre_hooks for module in model.modules())
