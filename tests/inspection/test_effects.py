"""What blocks do for the loss, held against planted structure and a slow loop over the reference."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NEW_FORM, ReferenceMu, lively_model, reference_of, small_model
from reference.model import block_ranges
from scipy import stats
from torch import Tensor, nn

from mu_sota import MuForCausalLM
from mu_sota.common.hooks import attached
from mu_sota.inspection.effects import KINDS, BlockEffects, block_effects
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError

NAMES = [block.name for block in BLOCKS]
MEAN, OTHER = range(2)  # of KINDS
ALL = -1  # of places


def texts(pieces: int = 3, tokens: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(37, (pieces, tokens), generator=torch.Generator().manual_seed(seed))


def columns(block: int) -> slice:
    """The values of a block in the states of a small model."""
    return slice(4 * block, 4 * block + 4)


def reference_loss(reference: ReferenceMu, piece: Tensor) -> Tensor:
    return F.cross_entropy(reference(piece[None, :-1]).logits[0], piece[1:])


@contextmanager
def written(reference: ReferenceMu, values: dict[int, Tensor], block: int) -> Iterator[None]:
    """Hooks write a block of values [T, M, M] into the reference's matrices before the readers of the given places."""
    readers: list[Any] = [*reference.layers, reference.norm]
    top, bottom, left, right = block_ranges(8)[block]

    def write(place: int) -> Callable[[nn.Module, Any], Any]:
        def hook(module: nn.Module, inputs: Any) -> Any:
            matrix = inputs[-1].clone()
            if module is reference.norm:
                matrix = matrix.unflatten(-1, (8, 8))
            matrix[0, :, top:bottom, left:right] = values[place][:, top:bottom, left:right]
            return matrix.flatten(-2) if module is reference.norm else (*inputs[:-1], matrix)

        return hook

    with attached(readers[place].register_forward_pre_hook(write(place)) for place in values):
        yield


@pytest.mark.parametrize(
    ("form", "blocks", "digits"), [({}, (0, 3, 15), 1e-10), (NEW_FORM, (6,), 1e-6)], ids=["specified", "new form"]
)
@torch.no_grad()
def test_increases_are_those_of_a_slow_loop_over_the_reference(
    form: dict[str, Any], blocks: tuple[int, ...], digits: float
) -> None:
    model, pieces = lively_model(**form), texts(tokens=6)
    reference = reference_of(model)
    effects = block_effects(model, pieces, batch_size=2)
    assert effects.increase.shape == (2, 4, 16, 3)
    states = torch.stack([torch.cat(reference(piece[None, :-1]).states) for piece in pieces])  # [P, L + 1, T, M, M]
    loss = [reference_loss(reference, piece) for piece in pieces]
    for kind, place, block, number in product((MEAN, OTHER), (0, 1, 2, ALL), blocks, range(3)):
        values = states[(number + 1) % 3]
        if kind == MEAN:
            values = states.mean((0, 2))[:, None].expand(3, 5, 8, 8)
        places = range(3) if place == ALL else [place]
        with written(reference, {each: values[each] for each in places}, block):
            expected = reference_loss(reference, pieces[number]) - loss[number]
        assert expected.abs() > 1e-4  # far above `digits`
        torch.testing.assert_close(effects.increase[kind, place, block, number], expected, rtol=0, atol=digits)


@torch.no_grad()
def test_the_loss_is_that_of_the_model() -> None:
    model, pieces = lively_model(), texts()
    effects = block_effects(model, pieces, batch_size=2)
    for piece, loss in zip(pieces, effects.loss, strict=True):
        assert loss.item() == pytest.approx(model(piece[None], labels=piece[None]).loss.item())


def with_identity_norms(model: MuForCausalLM) -> MuForCausalLM:
    """A LayerNorm reads all blocks; without one, who reads a block is a matter of the weights' columns."""
    model.model.norm = nn.Identity()
    for layer in model.model.layers:
        layer.attention_norm = layer.feed_forward_norm = nn.Identity()
    return model


@pytest.mark.parametrize("block", [2, 12])
@torch.no_grad()
def test_a_block_that_nothing_reads_has_no_effect_at_all(block: int) -> None:
    """The block lives on, but for itself."""
    model = with_identity_norms(lively_model())
    for layer in model.model.layers:
        layer.cross_attention.qkv.weight[:, columns(block)] = 0
        layer.feed_forward.up.weight[:, columns(block)] = 0
    model.lm_head.weight[:, columns(block)] = 0
    effects = block_effects(model, texts(), batch_size=3)
    assert (effects.increase[:, :, block] == 0).all()
    others = [number for number in range(16) if number != block]
    assert (effects.increase[:, :, others] != 0).all()


@torch.no_grad()
def test_the_one_block_that_is_read_is_the_only_one_with_an_effect() -> None:
    """Texts count upwards, and the head knows a token by what block 9 has of the one before."""
    model = with_identity_norms(lively_model())
    for layer in model.model.layers:
        layer.sensitivity.base.zero_()  # no layer changes the state
    model.lm_head.weight.zero_()
    model.lm_head.weight[:, columns(9)] = model.model.token_embedding.weight[:, columns(9)].roll(1, 0)
    pieces = (torch.arange(9) + torch.tensor([[0], [7], [21]])) % 37
    effects = block_effects(model, pieces, batch_size=3)
    assert effects.ranking[0] == NAMES[9]
    assert (effects.increase[:, :, 9] > 0.1).all()
    assert (effects.increase[:, :, [*range(9), *range(10, 16)]] == 0).all()
    # What is replaced at one place reaches the head as it is.
    torch.testing.assert_close(effects.increase, effects.increase[:, -1:].expand_as(effects.increase))


@torch.no_grad()
def test_a_constant_block_has_no_effect() -> None:
    model, block = small_model(), 5
    assert model.model.position_embedding is not None
    model.model.token_embedding.weight[:, columns(block)] = torch.tensor([0.1, -0.7, 3.3, 0.0])
    model.model.position_embedding.weight[:, columns(block)] = 0
    for layer in model.model.layers:
        layer.sensitivity.base[block] = 0
    effects = block_effects(model, texts(), batch_size=2)
    assert (effects.increase[:, :, block] == 0).all()
    assert (effects.increase[MEAN, ALL] != 0).any(-1).sum() == 15


@torch.no_grad()
def test_interchange_of_equal_pieces_has_no_effect() -> None:
    effects = block_effects(lively_model(), texts(1, 9).expand(3, -1), batch_size=3)
    assert (effects.increase[OTHER] == 0).all()
    assert (effects.increase[MEAN] != 0).all()


@settings(max_examples=4)
@given(batch_size=st.integers(1, 6), pieces=st.integers(2, 5), tokens=st.integers(2, 5))
def test_the_size_of_a_batch_changes_nothing(batch_size: int, pieces: int, tokens: int) -> None:
    model, ids = lively_model(num_hidden_layers=1), texts(pieces, tokens)
    found, expected = (block_effects(model, ids, batch_size=size) for size in (batch_size, pieces))
    torch.testing.assert_close(found.increase, expected.increase)
    torch.testing.assert_close(found.loss, expected.loss)


def test_progress_wraps_the_batches() -> None:
    seen: list[Any] = []

    def progress(batches: list[range]) -> Iterable[range]:
        seen.append(batches)
        for batch in batches:
            yield batch
            seen.append(batch)

    block_effects(lively_model(num_hidden_layers=1), texts(5, 3), batch_size=2, progress=progress)
    assert seen == [[range(2), range(2, 4), range(4, 5)], range(2), range(2, 4), range(4, 5)]


def test_effects_in_float32_are_those_in_float64() -> None:
    """The kernels compute the former."""
    exact = block_effects(lively_model(num_hidden_layers=1), texts(2, 20), batch_size=2)
    found = block_effects(lively_model(num_hidden_layers=1).float(), texts(2, 20), batch_size=2)
    torch.testing.assert_close(found.increase, exact.increase, rtol=0, atol=3e-6)


def test_a_model_in_bfloat16_has_losses_in_float64() -> None:
    effects = block_effects(small_model(num_hidden_layers=1).bfloat16(), texts(2, 4), batch_size=2)
    assert effects.loss.dtype == effects.increase.dtype == torch.float64
    assert effects.increase.isfinite().all()


def test_effects_leave_no_hook() -> None:
    model = lively_model(num_hidden_layers=1)
    block_effects(model, texts(2, 3), batch_size=2)
    assert not any(module._forward_pre_hooks for module in model.modules())


def made_up(pieces: int) -> BlockEffects:
    """Effects of two layers: those of a block grow with its number, but for the first, the greatest."""
    generator = torch.Generator().manual_seed(1)
    increase = 0.01 * torch.randn(2, 4, 16, pieces, generator=generator, dtype=torch.float64)
    increase[MEAN, ALL] += torch.arange(16)[:, None]
    increase[MEAN, ALL, 0] += 99
    return BlockEffects(loss=torch.linspace(3, 4, pieces, dtype=torch.float64), increase=increase)


@pytest.mark.parametrize("pieces", [2, 3, 40])
def test_means_and_intervals_are_those_of_student(pieces: int) -> None:
    effects = made_up(pieces)
    low, high = effects.interval
    for index in [(0, 0, 0), (0, 3, 7), (1, 2, 15)]:
        values = effects.increase[index].numpy()
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert effects.mean[index].item() == pytest.approx(values.mean())
        assert (low[index].item(), high[index].item()) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_equal_increases_has_no_width() -> None:
    low, high = BlockEffects(loss=torch.ones(3), increase=torch.zeros(2, 3, 16, 3)).interval
    assert (low == 0).all()
    assert (high == 0).all()


def test_blocks_are_ranked_by_mean_ablation_at_all_places() -> None:
    assert made_up(4).ranking == [NAMES[0], *NAMES[:0:-1]]


def test_the_record_can_be_read_back() -> None:
    effects = made_up(3)
    record = json.loads(json.dumps(effects.as_dict()))
    assert record["pieces"] == 3
    assert record["loss"] == 3.5
    assert record["places"] == ["layer 1", "layer 2", "final norm", "all"]
    assert record["blocks"] == NAMES
    assert record["ranking"] == effects.ranking
    assert list(record["increase"]) == list(KINDS)
    for index, kind in enumerate(KINDS):
        assert record["increase"][kind] == {
            "mean": effects.mean[index].tolist(),
            "low": effects.interval[0][index].tolist(),
            "high": effects.interval[1][index].tolist(),
        }


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"training mode.*call model\.eval\(\)"):
        block_effects(lively_model().train(), texts(), batch_size=2)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 1), (2, 3, 4)])
def test_texts_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"texts have the shape \[.*\], but effects need \[pieces, tokens\]"):
        block_effects(lively_model(), torch.zeros(shape, dtype=torch.long), batch_size=2)


def test_pieces_may_fill_the_positions_and_no_more() -> None:
    model = lively_model(num_hidden_layers=1)
    assert math.isfinite(block_effects(model, texts(2, 25), batch_size=2).loss.sum())
    with pytest.raises(ValueError, match="positions"):
        block_effects(model, texts(2, 26), batch_size=2)
