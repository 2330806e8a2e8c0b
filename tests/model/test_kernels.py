"""The C++ kernels against plain equations in float64.

Legend: B batch, T time, H heads or blocks, K size of a head, D state, F width inside the feed-forward network, V
vocabulary.
"""

import math
import platform
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_checks import (
    LENGTHS,
    NO_SEED,
    SEEDS,
    SHAPES,
    assert_near,
    doubled,
    feed_forward_inputs,
    full_attention,
    in_steps,
    needs_kernels,
    plain_feed_forward,
    randoms,
    scaled_qkv,
    soil_the_heap,
)
from reference import lively_model, small_config
from torch import Tensor

from mu_sota.model import kernels
from mu_sota.model.attention import rotary_turns
from mu_sota.model.layers import FeedForward
from mu_sota.model.loss import IGNORE_INDEX, chunked_cross_entropy


@needs_kernels
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="slow on x86 alone")
@pytest.mark.parametrize("number", [1, 3])
def test_numbers_too_small_to_be_fast_are_zero_within_the_kernels_alone(
    number: int, threads: Callable[[int], None]
) -> None:
    """Attention that is sure of itself makes many of them, and slowed a training to a third of its speed."""
    threads(number)
    least = torch.finfo(torch.float32).tiny
    qkv = torch.zeros(2, 8, 3, 4, 4)
    qkv[:, ::2, 2] = least  # halves and thirds of which are below
    qkv.requires_grad_()
    output, _, _ = kernels.fused_attention(qkv)
    (grad,) = torch.autograd.grad(output, qkv, torch.full_like(output, least))
    for name, result in (("output", output), ("gradient", grad)):
        assert result.abs().max() >= least, name
        assert not ((result != 0) & (result.abs() < least)).any(), name
    assert (torch.full((3,), least) / 2).all(), "PyTorch goes on as before"


# --- Attention ------------------------------------------------------------------------------------------------------


@needs_kernels
@settings(max_examples=60)
@given(
    **SHAPES,
    scale=st.sampled_from([1e-4, 1.0, 8.0, 30.0, 300.0]),
    seed=SEEDS,
)
@example(batch=2, length=1, heads=1, size=1, scale=1.0, seed=0)
@example(batch=2, length=16, heads=2, size=8, scale=1.0, seed=0)
@example(batch=1, length=17, heads=5, size=16, scale=300.0, seed=1)
@example(batch=1, length=70, heads=3, size=3, scale=300.0, seed=2)
@example(batch=1, length=10, heads=1, size=1, scale=300.0, seed=105)
def test_attention_equals_the_full_matrix(
    batch: int, length: int, heads: int, size: int, scale: float, seed: int
) -> None:
    """Output, entropy and the gradient through either and both, from diffuse rows to scores of hundreds."""
    qkv = scaled_qkv((batch, length, heads, size), scale, seed)
    (exact,) = doubled(qkv)
    soil_the_heap()
    output, entropy, _ = kernels.fused_attention(qkv)
    expected_output, expected_entropy, largest = full_attention(exact)
    rounding = 2e-6 + 6e-7 * largest  # of a score, and so of its exponential
    assert_near(output, expected_output, rounding, "output")
    assert_near(entropy, expected_entropy, 2 * rounding, "entropy")

    into_output, into_entropy = (tensor.detach() for tensor in randoms(seed + 1, output.shape, entropy.shape))
    for part in ("output", "entropy", "both"):
        by_output, by_entropy = into_output * (part != "entropy"), into_entropy * (part != "output")
        soil_the_heap()
        (found,) = torch.autograd.grad([output, entropy], [qkv], [by_output, by_entropy], retain_graph=True)
        (expected,) = torch.autograd.grad(
            [expected_output, expected_entropy], [exact], [by_output.double(), by_entropy.double()], retain_graph=True
        )
        # A gradient is such an exponential times keys or queries, some of which are larger than `scale`.
        assert_near(found, expected, 10 * rounding * max(1.0, scale / 30), f"gradient through {part}")


@needs_kernels
@pytest.mark.parametrize("score", [-400.0, 400.0])
def test_attention_takes_the_maximum_out_of_scores_that_are_alike(score: float) -> None:
    """Where all scores of a row are far from 0 its exponentials leave float32, but the row itself is uniform."""
    (qkv,) = randoms(0, (1, 40, 3, 2, 4))
    with torch.no_grad():
        qkv[:, :, 0], qkv[:, :, 1] = math.sqrt(abs(score) / 2), math.copysign(math.sqrt(abs(score) / 2), score)
    output, entropy, _ = kernels.fused_attention(qkv)
    counts = torch.arange(1.0, 41.0)
    assert_near(entropy, counts.double().log().expand(1, 2, 40), 2e-4)
    assert_near(output, (qkv[:, :, 2].double().cumsum(1) / counts[:, None, None]).detach(), 1e-5)


@needs_kernels
def test_the_exponential_is_good_to_the_last_digits() -> None:
    """Of two keys the second has the weight of a sigmoid: to a few units in the last place of float32."""
    scores = torch.linspace(-3, 3, 5000)
    qkv = torch.zeros(5000, 2, 3, 1, 1)
    qkv[:, :, 0] = 1
    qkv[:, 1, 1, 0, 0] = scores
    qkv[:, 1, 2] = 1
    output = kernels.fused_attention(qkv)[0][:, 1, 0, 0].double()
    expected = scores.double().sigmoid()
    assert ((output - expected) / expected).abs().max() <= 6e-7


@needs_kernels
def test_attention_takes_any_strides() -> None:
    """Queries, keys and values that are a view of something larger, and gradients that come as one."""
    (wide,) = randoms(0, (2, 5, 2, 3, 9))
    qkv = wide.permute(0, 4, 3, 2, 1)  # [2, 9, 3, 2, 5]
    output, entropy, _ = kernels.fused_attention(qkv)
    (into,) = randoms(1, (2, 5, 2, 9))
    (found,) = torch.autograd.grad([output, entropy.mT], [wide], [into.permute(0, 3, 2, 1), into[:, 0].mT])
    (exact,) = doubled(wide)
    expected_output, expected_entropy, _ = full_attention(exact.permute(0, 4, 3, 2, 1))
    (expected,) = torch.autograd.grad(
        [expected_output, expected_entropy.mT], [exact], [into.permute(0, 3, 2, 1).double(), into[:, 0].mT.double()]
    )
    assert_near(output, expected_output, 1e-5)
    assert_near(found, expected, 1e-5)


@needs_kernels
@pytest.mark.parametrize("place", [0, 3, 15, 16, 20, 36])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_value_shows_where_it_is_seen_and_nowhere_else(bad: float, place: int) -> None:
    """NaN and infinity are for the caller to find: in that component of the rows from there on, and no row before."""
    (qkv,) = randoms(0, (2, 37, 3, 3, 5))
    broken = qkv.detach().clone()
    broken[1, place, 2, 1, 3] = bad
    (clean, clean_entropy, _), (output, entropy, _) = (
        kernels.fused_attention(qkv.detach()),
        kernels.fused_attention(broken),
    )
    assert not output[1, place:, 1, 3].isfinite().any()
    output[1, place:, 1, 3] = clean[1, place:, 1, 3]
    assert torch.equal(output, clean)
    assert torch.equal(entropy, clean_entropy)


@needs_kernels
@pytest.mark.parametrize("place", [0, 3, 16, 36])
def test_a_broken_key_or_query_shows_in_its_head(place: int) -> None:
    """A key makes all rows from there on NaN, entropy too; a query its own row."""
    (qkv,) = randoms(0, (2, 37, 3, 3, 5))
    clean, clean_entropy, _ = kernels.fused_attention(qkv.detach())
    for part, rows in ((0, slice(place, place + 1)), (1, slice(place, None))):
        broken = qkv.detach().clone()
        broken[1, place, part, 1, 3] = math.nan
        output, entropy, _ = kernels.fused_attention(broken)
        assert output[1, rows, 1].isnan().all()
        assert entropy[1, 1, rows].isnan().all()
        output[1, rows, 1], entropy[1, 1, rows] = clean[1, rows, 1], clean_entropy[1, 1, rows]
        assert torch.equal(output, clean)
        assert torch.equal(entropy, clean_entropy)


@needs_kernels
@settings(max_examples=60)
@given(
    length=LENGTHS,
    size=st.integers(1, 16),
    scale=st.sampled_from([0.1, 10.0, 1000.0]),
    before=st.sampled_from([1.0, 10.0, 100.0]),
    data=st.data(),
    seed=SEEDS,
)
def test_attention_is_causal_to_the_last_bit(
    length: int, size: int, scale: float, before: float, data: st.DataObject, seed: int
) -> None:
    """However large a position becomes, no earlier row changes by a rounding."""
    place = data.draw(st.integers(0, length - 1))
    qkv = scaled_qkv((2, length, 2, size), before, seed).detach()
    changed = qkv.clone()
    changed[:, place] = randoms(seed + 1, tuple(qkv[:, place].shape))[0].detach() * scale
    for ours, theirs in zip(kernels.fused_attention(qkv)[:2], kernels.fused_attention(changed)[:2], strict=True):
        time = 1 if ours.dim() == 4 else 2
        assert torch.equal(ours.narrow(time, 0, place), theirs.narrow(time, 0, place))


BLOCK_SHAPES = "blocks", "qkv_weight", "qkv_bias", "out_weight", "out_bias"


def block_inputs(shape: tuple[int, int, int, int], scale: float, seed: int) -> list[Tensor]:
    """State [B, T, H, K] and the weights of every block, [H, 3K, K], [H, 3K], [H, K, K] and [H, K]."""
    _, _, heads, size = shape
    inputs = randoms(seed, shape, (heads, 3 * size, size), (heads, 3 * size), (heads, size, size), (heads, size))
    with torch.no_grad():
        inputs[1] *= math.sqrt(scale / size)
    return inputs


def plainly_turned(qkv: Tensor, positions: Tensor) -> Tensor:
    """Queries and keys of [B, T, 3, H, K] turned as complex numbers (Su et al. 2021, eq. 13), in float64."""
    half = qkv.shape[-1] // 2
    angles = positions.double()[:, :, None, None, None] * 10_000.0 ** -(torch.arange(half).double() / max(half, 1))
    first, second, rest = qkv[:, :, :2].split([half, half, qkv.shape[-1] - 2 * half], dim=-1)
    numbers = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.cat([numbers.real, numbers.imag, rest], dim=-1), qkv[:, :, 2:]], dim=2)


def plain_block_attention(blocks: Tensor, *weights: Tensor, positions: Tensor | None = None) -> tuple[Tensor, float]:
    """The output, and the largest score; with `positions` [B or 1, T], of rotary attention."""
    qkv_weight, qkv_bias, out_weight, out_bias = weights
    by_head = []
    largest = 0.0
    for head in range(blocks.shape[2]):
        qkv = blocks[:, :, head] @ qkv_weight[head].T + qkv_bias[head]
        heads = qkv.unflatten(-1, (3, 1, -1))
        mixed, _, score = full_attention(heads if positions is None else plainly_turned(heads, positions))
        by_head.append(mixed[:, :, 0] @ out_weight[head].T + out_bias[head])
        largest = max(largest, score)
    return torch.stack(by_head, 2), largest


@needs_kernels
@settings(max_examples=60)
@given(
    **SHAPES,
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    seed=SEEDS,
)
@example(batch=2, length=1, heads=1, size=1, scale=1.0, seed=0)
@example(batch=2, length=16, heads=3, size=4, scale=1.0, seed=0)
@example(batch=2, length=32, heads=3, size=4, scale=1.0, seed=0)
@example(batch=3, length=45, heads=5, size=16, scale=1.0, seed=0)
def test_block_attention_equals_plain_attention_of_every_block(
    batch: int, length: int, heads: int, size: int, scale: float, seed: int
) -> None:
    """Output, and gradients by the state and all four weights."""
    inputs = block_inputs((batch, length, heads, size), scale, seed)
    exact = doubled(*inputs)
    soil_the_heap()
    output = kernels.fused_block_attention(*inputs)[0]
    expected, largest = plain_block_attention(*exact)
    rounding = 3e-6 + 5e-7 * largest
    assert_near(output, expected, rounding, "output")
    (into,) = randoms(seed + 1, output.shape)
    soil_the_heap()
    found = torch.autograd.grad(output, inputs, into.detach())
    wanted = torch.autograd.grad(expected, exact, into.detach().double())
    for name, ours, theirs in zip(BLOCK_SHAPES, found, wanted, strict=True):
        assert_near(ours, theirs, 10 * rounding, f"gradient by {name}")


@needs_kernels
@settings(max_examples=60)
@given(**SHAPES, of_each_text=st.booleans(), seed=SEEDS)
@example(batch=2, length=1, heads=1, size=1, of_each_text=True, seed=0)
@example(batch=2, length=16, heads=3, size=4, of_each_text=False, seed=0)
@example(batch=3, length=45, heads=5, size=9, of_each_text=True, seed=0)
def test_both_attentions_turn_queries_and_keys(
    batch: int, length: int, heads: int, size: int, of_each_text: bool, seed: int
) -> None:
    """By positions that all texts share, or by their own; outputs, entropies, and all gradients."""
    positions = torch.randint(
        100, (batch if of_each_text else 1, length), generator=torch.Generator().manual_seed(seed)
    )
    turns = rotary_turns(positions, size)
    qkv = scaled_qkv((batch, length, heads, size), 1.0, seed)
    (exact,) = doubled(qkv)
    blocks = block_inputs((batch, length, heads, size), 1.0, seed)
    exact_blocks = doubled(*blocks)
    soil_the_heap()
    output, entropy, _ = kernels.fused_attention(qkv, turns)
    mixed, spread, _ = full_attention(plainly_turned(exact, positions))
    of_blocks = kernels.fused_block_attention(*blocks, turns)[0]
    expected_of_blocks, _ = plain_block_attention(*exact_blocks, positions=positions)
    for name, ours, theirs in (
        ("output", output, mixed),
        ("entropy", entropy, spread),
        ("output of blocks", of_blocks, expected_of_blocks),
    ):
        assert_near(ours, theirs, 1e-4, name)
    into, into_entropy = (one.detach() for one in randoms(seed + 1, output.shape, entropy.shape))
    soil_the_heap()
    found = torch.autograd.grad([output, entropy], [qkv], [into, into_entropy])
    found += torch.autograd.grad(of_blocks, blocks, into)
    wanted = torch.autograd.grad([mixed, spread], [exact], [into.double(), into_entropy.double()])
    wanted += torch.autograd.grad(expected_of_blocks, exact_blocks, into.double())
    for name, ours, theirs in zip(("qkv", *BLOCK_SHAPES), found, wanted, strict=True):
        assert_near(ours, theirs, 1e-3, f"gradient by {name}")


@needs_kernels
def test_block_attention_takes_any_strides() -> None:
    """A transposed state, and weights that are views."""
    inputs = block_inputs((2, 9, 3, 5), 1.0, 0)
    expected = kernels.fused_block_attention(*inputs)[0]
    turned = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in inputs]
    assert not turned[0].is_contiguous()
    output = kernels.fused_block_attention(*turned)[0]
    assert torch.equal(output, expected)
    (into,) = randoms(1, (9, 2, 3, 5))
    found = torch.autograd.grad(output, turned, into.transpose(0, 1))
    wanted = torch.autograd.grad(expected, inputs, into.transpose(0, 1))
    assert all(map(torch.equal, found, wanted))


@needs_kernels
@settings(max_examples=30)
@given(length=LENGTHS, scale=st.sampled_from([0.1, 100.0]), data=st.data(), seed=SEEDS)
def test_block_attention_is_causal_to_the_last_bit(length: int, scale: float, data: st.DataObject, seed: int) -> None:
    """As attention is."""
    place = data.draw(st.integers(0, length - 1))
    state, *weights = (tensor.detach() for tensor in block_inputs((2, length, 3, 4), 1.0, seed))
    changed = state.clone()
    changed[:, place] = randoms(seed + 1, (2, 3, 4))[0].detach() * scale
    ours, theirs = (
        kernels.fused_block_attention(state, *weights)[0],
        kernels.fused_block_attention(changed, *weights)[0],
    )
    assert torch.equal(ours[:, :place], theirs[:, :place])
    assert not torch.equal(ours[:, place], theirs[:, place])


@needs_kernels
def test_a_broken_state_shows_in_its_block_from_there_on() -> None:
    """NaN in one block at one position: no other block, and no row before."""
    state, *weights = (tensor.detach() for tensor in block_inputs((2, 37, 3, 4), 1.0, 0))
    clean = kernels.fused_block_attention(state, *weights)[0]
    state[1, 20, 1, 2] = math.nan
    broken = kernels.fused_block_attention(state, *weights)[0]
    assert broken[1, 20:, 1].isnan().all()
    broken[1, 20:, 1] = clean[1, 20:, 1]
    assert torch.equal(broken, clean)


# --- Feed-forward ---------------------------------------------------------------------------------------------------

FEED_FORWARD = "state", "up", "up_bias", "down", "down_bias"


def dropout_factors(rows: int, width: int, dropout: float, seed: int) -> Tensor:
    """What the kernel multiplies each hidden value by, read off a network that makes 1 of everything and copies it."""
    one = 0.8413447460685429  # GELU(1)
    state = torch.zeros(rows, width)
    up, up_bias = torch.zeros(width, width), torch.ones(width)
    down, down_bias = torch.eye(width) / one, torch.zeros(width)
    return kernels.fused_feed_forward(state, up, up_bias, down, down_bias, dropout, torch.tensor(seed))


@needs_kernels
@settings(max_examples=50)
@given(
    rows=st.integers(1, 150),
    size=st.sampled_from([16, 32, 64, 80, 144]),
    width=st.sampled_from([16, 48, 64, 112, 256]),
    scale=st.sampled_from([1e-3, 1.0, 5.0, 50.0]),
    seed=SEEDS,
)
@example(rows=48, size=64, width=64, scale=1.0, seed=0)
@example(rows=49, size=16, width=16, scale=1.0, seed=0)
@example(rows=101, size=80, width=112, scale=5.0, seed=0)
def test_feed_forward_equals_plain_operations(rows: int, size: int, width: int, scale: float, seed: int) -> None:
    """Output and all gradients, for rows that fill no tile too."""
    inputs = feed_forward_inputs(rows, size, width, scale, seed)
    exact = doubled(*inputs)
    soil_the_heap()
    output = kernels.fused_feed_forward(*inputs, 0.0, NO_SEED)
    expected = plain_feed_forward(None, *exact)
    assert_near(output, expected, 3e-6, "output")
    (into,) = randoms(seed + 1, output.shape)
    found = torch.autograd.grad(output, inputs, into.detach())
    wanted = torch.autograd.grad(expected, exact, into.detach().double())
    for name, ours, theirs in zip(FEED_FORWARD, found, wanted, strict=True):
        assert_near(ours, theirs, 1e-5, f"gradient by {name}")


@needs_kernels
def test_gelu_is_right_everywhere() -> None:
    """Value and slope over the whole range, 0 and the far tails included: the exact GELU, not the one of tanh."""
    x = torch.cat([torch.linspace(-12, 12, 16 * 400 - 2), torch.tensor([-1e4, 1e4])]).view(400, 16)
    x = x.sort(-1).values.requires_grad_()
    eye, zero = torch.eye(16), torch.zeros(16)
    output = kernels.fused_feed_forward(x, eye, zero, eye, zero, 0.0, NO_SEED)
    (slope,) = torch.autograd.grad(output.sum(), [x])
    (exact,) = doubled(x)
    expected = F.gelu(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), [exact])
    assert ((output - expected).abs() <= 1e-6 * (1 + exact.abs())).all()
    assert ((slope - expected_slope).abs() <= 2e-6).all()
    assert output[exact < -12].abs().max() <= 1e-6


@needs_kernels
@pytest.mark.parametrize("rows", [1, 7, 48, 50, 131])
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_is_the_same_forward_and_backward(rows: int, dropout: float) -> None:
    """Output and gradients are those of the network with the mask that the seed stands for."""
    inputs = feed_forward_inputs(rows, 64, 96, 1.0, rows)
    exact = doubled(*inputs)
    factors = dropout_factors(rows, 96, dropout, seed=rows + 5)
    kept = factors > 0.5
    torch.testing.assert_close(factors, kept.float() / (1 - dropout), rtol=1e-6, atol=0)
    output = kernels.fused_feed_forward(*inputs, dropout, torch.tensor(rows + 5))
    expected = plain_feed_forward(kept / (1 - dropout), *exact)
    assert_near(output, expected, 3e-6, "output")
    (into,) = randoms(1, output.shape)
    found = torch.autograd.grad(output, inputs, into.detach())
    wanted = torch.autograd.grad(expected, exact, into.detach().double())
    for name, ours, theirs in zip(FEED_FORWARD, found, wanted, strict=True):
        assert_near(ours, theirs, 1e-5, f"gradient by {name}")


@needs_kernels
@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_at_random(dropout: float) -> None:
    """Of all, of every row and of every column; rows, columns and seeds know nothing of each other."""
    rows, width, first = 600, 128, 2**61 + 7
    dropped = torch.stack([dropout_factors(rows, width, dropout, first + more) for more in (0, 1, 2**33)]) == 0
    centred = (dropped.double() - dropout) / math.sqrt(dropout * (1 - dropout))  # mean 0, variance 1
    assert abs(centred.mean()) <= 5 / math.sqrt(centred.numel())
    assert (centred.mean(-1).abs() * math.sqrt(width)).max() <= 7
    assert (centred.mean(1).abs() * math.sqrt(rows)).max() <= 6
    pairs = {"seeds": centred[0] * centred[1], "distant seeds": centred[0] * centred[2]}
    for step in (1, 2, 16, 48, 64):
        pairs[f"rows {step} apart"] = centred[:, step:] * centred[:, :-step]
        pairs[f"columns {step} apart"] = centred[:, :, step:] * centred[:, :, :-step]
        pairs[f"rows and columns {step} apart"] = centred[:, step:, step:] * centred[:, :-step, :-step]
    for name, products in pairs.items():
        assert abs(products.mean()) <= 5 / math.sqrt(products.numel()), name


@needs_kernels
def test_the_model_draws_a_new_mask_every_time_in_training_alone() -> None:
    """From PyTorch's generator, so that its seed gives the masks again."""
    feed_forward = FeedForward(small_config())
    feed_forward.dropout.p = 0.5
    state = torch.ones(1, 3, 64)
    torch.manual_seed(3)
    first, second = feed_forward(state), feed_forward(state)
    torch.manual_seed(3)
    assert torch.equal(feed_forward(state), first)
    assert not torch.equal(first, second)
    feed_forward.eval()
    assert torch.equal(feed_forward(state)[:, 0], feed_forward(state)[:, 1])


# --- Cross-entropy --------------------------------------------------------------------------------------------------


def check_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> None:
    """Loss, count and gradients of `chunked_cross_entropy` against logits in float64."""
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    exact = doubled(*inputs)
    logits = F.linear(*exact)
    counted = labels != IGNORE_INDEX
    own = logits.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    expected = ((logits.logsumexp(-1) - own) * counted).sum()
    top = logits.max(-1, keepdim=True).values
    places = torch.arange(logits.shape[-1]).expand_as(logits)
    right = places.masked_fill(logits < top, logits.shape[-1]).min(-1).values == labels  # the first of equal ones

    soil_the_heap()
    loss, correct = chunked_cross_entropy(hidden, weight, bias, labels)
    rounding = 2e-6 * (1 + float(logits.detach().abs().max()))
    assert abs(loss.detach().double() - expected) <= rounding * len(labels)
    assert correct.dtype == torch.int64
    near = ((logits >= top - rounding) & (logits != top)).any(-1)  # rounding may decide which is the largest
    assert abs(correct - right.sum()) <= near.sum()
    with torch.no_grad():
        evaluated, evaluated_correct = chunked_cross_entropy(hidden, weight, bias, labels)
    assert (evaluated, evaluated_correct) == (loss, correct)
    found = torch.autograd.grad(loss * 0.37, inputs)
    wanted = torch.autograd.grad(expected * 0.37, exact)
    for name, ours, theirs in zip(("hidden", "weight", "bias"), found, wanted, strict=False):
        assert_near(ours, theirs, 3 * rounding, f"gradient by {name}")
    assert (found[0][~counted] == 0).all()


@needs_kernels
@settings(max_examples=50)
@given(
    rows=st.integers(1, 500),
    vocabulary=st.integers(1, 400),
    size=st.sampled_from([16, 32, 64, 80]),
    biased=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    ignored=st.sampled_from([0.0, 0.3, 1.1]),
    seed=SEEDS,
)
@example(rows=1, vocabulary=1, size=16, biased=True, scale=1.0, ignored=0.0, seed=0)
@example(rows=192, vocabulary=128, size=16, biased=False, scale=1.0, ignored=0.0, seed=0)
@example(rows=193, vocabulary=129, size=80, biased=True, scale=1.0, ignored=0.3, seed=0)
@example(rows=400, vocabulary=257, size=64, biased=True, scale=1e4, ignored=0.3, seed=1)
@example(rows=250, vocabulary=300, size=32, biased=True, scale=1.0, ignored=1.1, seed=0)
def test_cross_entropy_equals_full_logits(
    rows: int, vocabulary: int, size: int, biased: bool, scale: float, ignored: float, seed: int
) -> None:
    """Around tiles of rows and of the vocabulary, up to logits of 10,000, with rows that count for nothing."""
    hidden, weight, bias = randoms(seed, (rows, size), (vocabulary, size), (vocabulary,))
    with torch.no_grad():
        weight *= scale / math.sqrt(size)
        bias *= scale
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE_INDEX
    check_cross_entropy(hidden, weight, bias if biased else None, labels)


@needs_kernels
@settings(max_examples=30)
@given(rows=st.integers(1, 300), vocabulary=st.integers(1, 400), spread=st.integers(0, 3), seed=SEEDS)
@example(rows=200, vocabulary=300, spread=0, seed=0)
def test_the_first_of_equal_logits_is_the_prediction(rows: int, vocabulary: int, spread: int, seed: int) -> None:
    """As torch.argmax has it: logits of few whole numbers, which are exact and often equal."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.zeros(rows, 16)
    hidden[:, 0] = 1
    hidden[:, 1] = torch.randint(-1, 2, (rows,), generator=generator)
    weight = torch.randint(-spread, spread + 1, (vocabulary, 16), generator=generator).float()
    best = (hidden.double() @ weight.double().T).max(-1, keepdim=True).values
    logits = hidden.double() @ weight.double().T
    labels = torch.where(logits == best, torch.arange(vocabulary), vocabulary).min(-1).values
    assert chunked_cross_entropy(hidden, weight, None, labels)[1] == rows
    last = torch.where(logits == best, torch.arange(vocabulary), -1).max(-1).values
    assert chunked_cross_entropy(hidden, weight, None, last)[1] == (last == labels).sum()
    check_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), None, last)


@needs_kernels
def test_cross_entropy_takes_any_strides_and_any_size() -> None:
    """Transposed states and weights, labels with a step, and states that fill no vector."""
    for size in (16, 5, 33):
        hidden, weight, bias = randoms(0, (size, 70), (size, 150), (300,))
        labels = torch.arange(140)[::2]
        check_cross_entropy(hidden.T.detach().requires_grad_(), weight.T.detach().requires_grad_(), None, labels)
        check_cross_entropy(
            hidden.T.contiguous().detach().requires_grad_(),
            weight.T.contiguous().detach().requires_grad_(),
            bias.detach()[::2].requires_grad_(),
            labels,
        )


@needs_kernels
def test_cross_entropy_of_no_rows_is_zero() -> None:
    """An empty batch adds nothing."""
    hidden, weight, bias = randoms(0, (0, 16), (20, 16), (20,))
    loss, correct = chunked_cross_entropy(hidden, weight, bias, torch.empty(0, dtype=torch.int64))
    assert loss == correct == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, [hidden, weight, bias]))


@needs_kernels
def test_a_vocabulary_can_begin_with_entries_that_are_ruled_out() -> None:
    """A bias of minus infinity over the whole first tile, and over single entries, takes these out of the sum."""
    hidden, weight, bias = randoms(0, (60, 16), (300, 16), (300,))
    with torch.no_grad():
        bias[:140] = -math.inf
        bias[200] = -math.inf
    labels = torch.arange(140, 200)
    exact = doubled(hidden, weight, bias)
    expected = F.cross_entropy(F.linear(*exact), labels, reduction="sum")
    loss, _ = chunked_cross_entropy(hidden, weight, bias, labels)
    assert_near(loss.detach(), expected.detach(), 1e-5)
    found, wanted = torch.autograd.grad(loss, [hidden, weight, bias]), torch.autograd.grad(expected, exact)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours, theirs, 1e-5)


@needs_kernels
def test_nan_shows_in_the_loss() -> None:
    """A training run that has gone wrong must say so: in a state, or in a weight wherever it stands."""
    for place in (0, 127, 128, 199):
        hidden, weight = (tensor.detach() for tensor in randoms(0, (60, 16), (200, 16)))
        weight[place, 3] = math.nan
        assert chunked_cross_entropy(hidden, weight, None, torch.arange(60))[0].isnan()
    hidden, weight = (tensor.detach() for tensor in randoms(0, (60, 16), (200, 16)))
    hidden[30, 2] = math.nan
    assert chunked_cross_entropy(hidden, weight, None, torch.arange(60))[0].isnan()


@needs_kernels
@pytest.mark.parametrize("label", [20, 10**6])
def test_a_label_beyond_the_vocabulary_is_refused(label: int) -> None:
    """Rather than read from memory that is not the table's."""
    hidden, weight = (tensor.detach() for tensor in randoms(0, (3, 16), (20, 16)))
    with pytest.raises((IndexError, RuntimeError)):
        chunked_cross_entropy(hidden, weight, None, torch.tensor([1, label, 2]))


# --- Threads --------------------------------------------------------------------------------------------------------


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads(threads: Callable[[int], None]) -> None:
    """To the last bit, masks of dropout included; but gradients of the feed-forward weights are summed by thread."""
    qkv = scaled_qkv((3, 37, 5, 4), 5.0, 0)
    blocks = block_inputs((3, 37, 5, 4), 1.0, 0)
    network = feed_forward_inputs(333, 32, 64, 1.0, 0)
    table = hidden, weight, bias = randoms(0, (777, 32), (391, 32), (391,))
    labels = torch.arange(777) % 391

    def results() -> tuple[list[Tensor], list[Tensor]]:
        attention = kernels.fused_attention(qkv)
        mixed = kernels.fused_block_attention(*blocks)[0]
        output = kernels.fused_feed_forward(*network, 0.3, torch.tensor(11))
        loss, correct = chunked_cross_entropy(hidden, weight, bias, labels)
        state, *by_thread = torch.autograd.grad(output.square().sum(), network)
        same = [
            *(tensor.detach() for tensor in (*attention, mixed, output, loss, correct)),
            *torch.autograd.grad((attention[0].sum(-1).transpose(1, 2) * attention[1]).sum(), [qkv]),
            *torch.autograd.grad(mixed.square().sum(), blocks),
            *torch.autograd.grad(loss, table),
            state,
        ]
        return same, by_thread

    threads(1)
    same, near = results()
    for number in (2, 3, 7):
        threads(number)
        same_again, near_again = results()
        assert all(map(torch.equal, same, same_again))
        for ours, theirs in zip(near, near_again, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert all(map(torch.equal, near_again, results()[1]))


# --- torch.library and torch.compile --------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
def test_the_operators_are_as_pytorch_wants_them() -> None:
    """Schema, registered gradients, and shapes without data: what torch.compile relies on."""
    qkv = scaled_qkv((2, 7, 3, 5), 1.0, 0)
    blocks = block_inputs((2, 7, 3, 5), 1.0, 0)
    network = feed_forward_inputs(7, 16, 32, 1.0, 0)
    soil_the_heap()
    torch.library.opcheck(kernels.fused_attention, (qkv,))
    torch.library.opcheck(kernels.fused_attention, (qkv.detach().transpose(0, 1).contiguous().transpose(0, 1),))
    torch.library.opcheck(kernels.fused_block_attention, tuple(blocks))
    turns = rotary_turns(torch.arange(7)[None], 5)
    torch.library.opcheck(kernels.fused_attention, (qkv, turns))
    torch.library.opcheck(kernels.fused_block_attention, (*blocks, turns))
    torch.library.opcheck(kernels.fused_feed_forward, (*network, 0.3, torch.tensor(5)))
    torch.library.opcheck(kernels.fused_feed_forward, (*network, 0.0, NO_SEED))


@needs_kernels
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_layer_equals_an_eager_one(training: bool) -> None:
    """In one graph, forward and backward."""
    torch.manual_seed(0)
    layer = lively_model().float().model.layers[0].train(training)
    state, affinity = randoms(0, (2, 9, 64), (2, 9, 16))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for run in (layer, compiled):
        output = run(state, affinity, None)
        inputs = [state, affinity, *layer.parameters()]
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@needs_kernels
# torch.compile itself makes an instance of every autograd.Function that it meets, and asks all tensors for `grad`.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_model_trains() -> None:
    """Around the loss, which is no part of any graph."""
    model = lively_model().float()
    ids = torch.arange(20)[None]
    expected = model(ids, labels=ids).loss
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = torch.compile(model, backend="aot_eager")(ids, labels=ids).loss
    assert_near(loss.detach(), expected.detach().double(), 1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        assert_near(ours, theirs.double(), 1e-5)


# --- Numbers that cross into C ---------------------------------------------------------------------------------------


@needs_kernels
def test_an_integer_for_a_float_gives_the_same_text() -> None:
    """Passed on as an integer, it would land in another register than the float that the kernel reads."""
    model = lively_model(layer_norm_eps=1.0).float()
    expected = in_steps(model, torch.arange(8)[None], prompt=4)
    model.config.layer_norm_eps = 1
    assert type(model.config.layer_norm_eps) is int
    assert torch.equal(in_steps(model, torch.arange(8)[None], prompt=4), expected)


@pytest.mark.parametrize("one", [1, True, 1.0, np.float64(1), np.int32(1), torch.tensor(1), Fraction(1)], ids=repr)
def test_a_number_of_any_type_becomes_that_of_its_parameter(one: Any) -> None:
    assert kernels._converted(one, "float").value == 1.0
    if not isinstance(one, float | Fraction):
        assert kernels._converted(one, "int64_t").value == 1


@needs_kernels
def test_a_number_that_does_not_fit_is_refused_before_the_kernel_runs() -> None:
    state, weight = torch.ones(1, 1, 16), torch.ones(4, 16)
    output = torch.zeros(1, 1, 4)
    for wrong, reason in ((2**63, "64 bits"), (-(2**63) - 1, "64 bits")):
        with pytest.raises(OverflowError, match=reason):
            kernels._call("mu_linear", state, weight, torch.ones(4), output, 4, wrong)
    with pytest.raises(TypeError):
        kernels._call("mu_linear", state, weight, torch.ones(4), output, 4, 16.0)
    with pytest.raises(ValueError, match="zip"):  # one number too few for the kernel
        kernels._call("mu_linear", state, weight, torch.ones(4), output, 4)
    for beyond in (math.nan, math.inf, 1e39):
        with pytest.raises(OverflowError, match="float32"):
            kernels._converted(beyond, "float")
    assert not output.any()


def test_every_kernel_is_read_from_the_source() -> None:
    """Its parameters' types, and the number of threads last."""
    declared = kernels._parameters()
    called = set(re.findall(r'_call\(\s*"(mu_\w+)"', Path(str(kernels.__file__)).read_text()))
    assert called == set(declared)
    assert all(kinds[-1] == "int64_t" for kinds in declared.values())
    assert {kind for kinds in declared.values() for kind in kinds if "*" not in kind} == {"int64_t", "float"}
