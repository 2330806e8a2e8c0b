"""The C++ kernels against plain equations in float64, and what happens where they cannot be had.

Legend: B batch, T time, H heads or blocks, K size of a head, D state, F width inside the feed-forward network, V
vocabulary.
"""

import gc
import logging
import math
import os
import pickle
import platform
import re
import shutil
import stat
import subprocess
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import lively_model, reference_of, small_config, small_model, to_reference
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicCache, DynamicLayer

from mu_sota import MuForCausalLM
from mu_sota.model import kernels
from mu_sota.model import modeling as model_module
from mu_sota.model.loss import IGNORE_INDEX, chunked_cross_entropy
from mu_sota.model.modeling import FeedForward, GrowingLayer

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="the CPU kernels cannot be compiled here")

LENGTHS = st.integers(1, 70)
SEEDS = st.integers(0, 10_000)
SHAPES = {"batch": st.integers(1, 3), "length": LENGTHS, "heads": st.integers(1, 5), "size": st.integers(1, 16)}


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float, what: str = "") -> None:
    """Equal but for `tolerance` times the largest value, or times 1 where all are smaller."""
    assert ours.shape == theirs.shape, what
    assert ours.isfinite().all(), what
    error = (ours.double() - theirs).abs().max() if ours.numel() else torch.zeros(())
    assert error <= tolerance * theirs.abs().max().clamp(min=1.0), f"{what}: off by {error}"


def randoms(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers of float32, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def doubled(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in float64, with gradients of their own."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def soil_the_heap() -> None:
    """Leave NaN in memory that is free: what a kernel forgets to set then shows."""
    dirty = [torch.full((1 << power,), math.nan) for power in range(6, 17) for _ in range(3)]
    del dirty


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets PyTorch's number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the kernels that run during the test."""
    names: set[str] = set()
    call = kernels._call

    def watched(name: str, *arguments: Any) -> None:
        names.add(name)
        call(name, *arguments)

    monkeypatch.setattr(kernels, "_call", watched)
    return names


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


def full_attention(qkv: Tensor) -> tuple[Tensor, Tensor, float]:
    """From [B, T, 3, H, K] and the whole matrix: output [B, T, H, K], entropy [B, H, T], and the largest score."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
    logs = scores.masked_fill(hidden, -math.inf).log_softmax(-1)
    weights = logs.exp()
    entropy = -(weights * logs.masked_fill(hidden, 0)).sum(-1)
    return (weights @ value).transpose(1, 2), entropy, float(scores.detach().abs().max())


def scaled_qkv(shape: tuple[int, int, int, int], scale: float, seed: int) -> Tensor:
    """[B, T, 3, H, K] whose scores are of the order of `scale`."""
    batch, length, heads, size = shape
    (qkv,) = randoms(seed, (batch, length, 3, heads, size))
    with torch.no_grad():
        qkv[:, :, :2] *= math.sqrt(scale)
    return qkv


@needs_kernels
@settings(deadline=None, max_examples=60)
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
@settings(deadline=None, max_examples=60)
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


def plain_block_attention(blocks: Tensor, *weights: Tensor) -> tuple[Tensor, float]:
    """The output, and the largest score."""
    qkv_weight, qkv_bias, out_weight, out_bias = weights
    by_head = []
    largest = 0.0
    for head in range(blocks.shape[2]):
        qkv = blocks[:, :, head] @ qkv_weight[head].T + qkv_bias[head]
        mixed, _, score = full_attention(qkv.unflatten(-1, (3, 1, -1)))
        by_head.append(mixed[:, :, 0] @ out_weight[head].T + out_bias[head])
        largest = max(largest, score)
    return torch.stack(by_head, 2), largest


@needs_kernels
@settings(deadline=None, max_examples=60)
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
@settings(deadline=None, max_examples=30)
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
NO_SEED = torch.zeros((), dtype=torch.int64)


def feed_forward_inputs(rows: int, size: int, width: int, scale: float, seed: int) -> list[Tensor]:
    """State [rows, D] and weights [F, D], [F], [D, F] and [D]; values before the GELU are of the order of `scale`."""
    inputs = randoms(seed, (rows, size), (width, size), (width,), (size, width), (size,))
    with torch.no_grad():
        inputs[1] *= scale / math.sqrt(size)
        inputs[3] *= width**-0.5
    return inputs


def plain_feed_forward(mask: Tensor | None, state: Tensor, *weights: Tensor) -> Tensor:
    """With the factors [rows, F] that dropout multiplies by, if any."""
    up, up_bias, down, down_bias = weights
    hidden = F.gelu(state @ up.T + up_bias)
    return (hidden if mask is None else hidden * mask) @ down.T + down_bias


def dropout_factors(rows: int, width: int, dropout: float, seed: int) -> Tensor:
    """What the kernel multiplies each hidden value by, read off a network that makes 1 of everything and copies it."""
    one = 0.8413447460685429  # GELU(1)
    state = torch.zeros(rows, width)
    up, up_bias = torch.zeros(width, width), torch.ones(width)
    down, down_bias = torch.eye(width) / one, torch.zeros(width)
    return kernels.fused_feed_forward(state, up, up_bias, down, down_bias, dropout, torch.tensor(seed))


@needs_kernels
@settings(deadline=None, max_examples=50)
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
    feed_forward = FeedForward(lively_model().config)
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
@settings(deadline=None, max_examples=50)
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
@settings(deadline=None, max_examples=30)
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
    assert (loss, correct) == (0, 0)
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
    table = randoms(0, (777, 32), (391, 32), (391,))
    labels = torch.arange(777) % 391

    def results() -> tuple[list[Tensor], list[Tensor]]:
        attention = kernels.fused_attention(qkv)
        mixed = kernels.fused_block_attention(*blocks)[0]
        output = kernels.fused_feed_forward(*network, 0.3, torch.tensor(11))
        loss, correct = chunked_cross_entropy(*table, labels)
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


# --- The whole model ------------------------------------------------------------------------------------------------

ALL_KERNELS = {
    f"mu_{name}{way}" for name in ("attention", "block_attention", "feed_forward") for way in ("", "_backward")
} | {"mu_cross_entropy"}
TWO_KERNELS = {"mu_feed_forward", "mu_feed_forward_backward", "mu_cross_entropy"}
BLOCK_KERNELS = TWO_KERNELS | {"mu_block_attention", "mu_block_attention_backward"}


@pytest.mark.parametrize("kernels_on", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "plain"])
@pytest.mark.parametrize(
    ("overrides", "runs"),
    [
        ({"matrix_size": 8, "num_attention_heads": 8}, ALL_KERNELS),
        ({"matrix_size": 8, "num_attention_heads": 1}, BLOCK_KERNELS),  # heads of 64
        ({"matrix_size": 4, "num_attention_heads": 2}, ALL_KERNELS),
        ({"matrix_size": 12, "num_attention_heads": 16}, ALL_KERNELS),
        ({"matrix_size": 12}, BLOCK_KERNELS),  # heads of 36
        ({"matrix_size": 16}, BLOCK_KERNELS),
        ({"matrix_size": 16, "num_attention_heads": 16}, ALL_KERNELS),
        ({"matrix_size": 24}, TWO_KERNELS),  # blocks of 36
        ({"matrix_size": 8, "intermediate_size": 40}, ALL_KERNELS - TWO_KERNELS | {"mu_cross_entropy"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else f"{len(value)} kernels",
)
def test_the_model_in_float32_equals_the_reference(
    overrides: dict[str, int], runs: set[str], kernels_on: bool, used: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, loss and all gradients, with every kernel that its sizes allow, and without any."""
    if not kernels_on:
        monkeypatch.setattr(kernels, "_switched_off", True)
    model = lively_model(**overrides).float()
    reference = reference_of(model)
    ids = torch.randint(model.config.vocab_size, (3, 23))
    labels = ids.clone()
    labels[1, 7:11] = IGNORE_INDEX
    ours = model(ids, labels=labels)
    ours.loss.backward()
    assert used == (runs if kernels_on else set())
    logits = reference(ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    assert_near(ours.logits, logits, 5e-5, "logits")
    assert_near(ours.loss, loss, 1e-5, "loss")
    assert ours.num_correct == (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum()
    gradients = to_reference({name: p.grad for name, p in model.named_parameters()}, reference.matrix_size)
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm()
        assert error <= 4e-4 * gradient.norm() + 5e-6 * whole, f"gradient by {name}: off by {error}"


@needs_kernels
def test_what_the_kernels_are_not_made_for_goes_without_them(used: set[str]) -> None:
    """Float64, autocast and padded batches."""
    ids = torch.randint(37, (2, 9))
    lively_model()(ids, labels=ids).loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lively_model().float()(ids, labels=ids).loss.backward()
    assert used == set()
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    lively_model().float()(ids, labels=ids, attention_mask=padding).loss.backward()
    assert used == TWO_KERNELS


@needs_kernels
def test_a_cached_text_continues_as_the_whole_is_read(used: set[str]) -> None:
    """The prompt goes through the kernels and fills the cache; the tokens after it need none."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 20))
    with torch.no_grad():
        whole = model(ids).logits
        used.clear()
        start = model(ids[:, :12], use_cache=True)
        assert used == {"mu_attention", "mu_feed_forward"}
        rest = [model(ids[:, [place]], past_key_values=start.past_key_values).logits for place in range(12, 20)]
    assert_near(torch.cat([start.logits, *rest], 1), whole.double(), 5e-5)


class _Adapted(nn.Linear):
    """Adds to what a linear layer gives, as an adapter of low rank would add its part."""

    def forward(self, state: Tensor) -> Tensor:
        return super().forward(state) + state.sin().sum(-1, keepdim=True) * self.bias


LINEARS = ["feed_forward.up", "feed_forward.down", "block_attention.qkv", "block_attention.out", "cross_attention.qkv"]


@pytest.mark.parametrize("name", [*LINEARS, "feed_forward.dropout"])
def test_hooks_run(name: str) -> None:
    """A forward hook sees and may change the output of any part, a forward pre-hook its input, also with kernels."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    part = model.model.layers[0].get_submodule(name)
    before = model(ids).logits
    seen = []
    for register in (
        lambda: part.register_forward_hook(lambda module, inputs, output: seen.append(1) or output.sin()),
        lambda: part.register_forward_pre_hook(lambda module, inputs: seen.append(1) or (inputs[0].sin(),)),
    ):
        handle = register()
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)
        handle.remove()
        assert torch.equal(model(ids).logits, before)
    assert len(seen) == 2


@pytest.mark.parametrize("name", LINEARS)
def test_backward_hooks_run(name: str) -> None:
    """As they do around any module."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    seen = []
    model.model.layers[0].get_submodule(name).register_full_backward_hook(lambda *_: seen.append(1))
    model(ids, labels=ids).loss.backward()
    assert seen == [1]


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_replaced_linear_layer_takes_effect(name: str) -> None:
    """Adapters put a module of their own in the place of a linear layer, or a `forward` of their own into it."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    before = model(ids).logits
    feed_forward = model.model.layers[0].feed_forward
    linear = getattr(feed_forward, name)
    adapted = _Adapted(linear.in_features, linear.out_features)
    adapted.load_state_dict(linear.state_dict())
    setattr(feed_forward, name, adapted)
    replaced = model(ids).logits
    assert not torch.allclose(replaced, before, atol=1e-3)

    setattr(feed_forward, name, linear)
    assert torch.equal(model(ids).logits, before)
    plain = linear.forward
    linear.forward = lambda state: plain(state) + state.sin().sum(-1, keepdim=True) * linear.bias
    torch.testing.assert_close(model(ids).logits, replaced)


@pytest.mark.parametrize("bias", [True, False])
def test_a_parametrized_weight_takes_effect(bias: bool) -> None:
    """A weight that is computed from others goes through its own module."""

    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    before = model(ids).logits
    up = model.model.layers[0].feed_forward.up
    nn.utils.parametrize.register_parametrization(up, "bias" if bias else "weight", Twice())
    assert not torch.allclose(model(ids).logits, before, atol=1e-3)


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


# --- Training -------------------------------------------------------------------------------------------------------


def trained(steps: int, **overrides: Any) -> tuple[list[float], MuForCausalLM]:
    """The losses of some steps of AdamW on one made-up batch after another, and the model after them."""
    model = small_model(matrix_size=8, **overrides).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = (torch.arange(24 * 4 * steps).view(steps, 4, 24) ** 2 // 7) % 37
    losses = []
    for batch in ids:
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_training_is_reproducible() -> None:
    """Two steps from one seed, with dropout: the same losses and gradients to the last bit."""
    runs = []
    for _ in range(2):
        soil_the_heap()
        runs.append(trained(2, dropout=0.1))
    (first, model), (second, again) = runs
    assert first == second
    gradients = [[p.grad for p in run.parameters()] for run in (model, again)]
    assert all(map(torch.equal, *gradients))


# Of 20 steps, by PyTorch's own operations in float32.
LOSSES = [3.62003, 3.62344, 3.57263, 3.48128, 3.5133, 3.43114, 3.41494, 3.45875, 3.29174, 3.33516]
LOSSES += [3.31195, 3.22155, 3.24601, 3.19713, 3.11373, 3.17696, 3.02617, 3.08041, 3.05989, 2.97614]


@pytest.mark.parametrize("kernels_on", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "plain"])
def test_training_goes_as_it_always_has(kernels_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of the first steps are known numbers: a change of the model, or of a kernel, shows in them."""
    if not kernels_on:
        monkeypatch.setattr(kernels, "_switched_off", True)
    losses, _ = trained(20)
    assert losses == pytest.approx(LOSSES, rel=1e-3)


@needs_kernels
def test_training_with_kernels_goes_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of 20 steps; they differ by 2e-7 or so."""
    losses, _ = trained(20)
    monkeypatch.setattr(kernels, "_switched_off", True)
    assert losses == pytest.approx(trained(20)[0], rel=1e-5)


# --- The library ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a cache without kernels, from which they are looked up anew; warnings go to caplog."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MU_SOTA_CACHE", str(folder))
    monkeypatch.delenv("MU_SOTA_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    kernels.library.cache_clear()
    yield folder
    kernels.library.cache_clear()


def fake_compiler(folder: Path, script: str) -> Path:
    """A shell script that passes for the only compiler; it notes what it was called with in `calls` beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / "c++"
    path.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def small_enough(size: int = 16) -> bool:
    return kernels.kernels_usable(torch.zeros(1), size)


def runs_without_kernels() -> None:
    """The model trains all the same."""
    assert not small_enough()
    model = small_model()
    ids = torch.arange(20)[None]
    model(ids, labels=ids).loss.backward()


def test_kernels_can_be_turned_off(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By MU_SOTA_KERNELS=0: nothing is compiled, and nothing is said."""
    monkeypatch.setenv("MU_SOTA_KERNELS", "0")
    assert kernels.library() is None
    runs_without_kernels()
    assert not cache.exists()
    assert not caplog.messages


def test_without_a_compiler_it_says_once_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And works without kernels."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert kernels.library() is None
    runs_without_kernels()
    (message,) = caplog.messages
    assert "C++ compiler" in message
    assert not cache.exists()


@pytest.mark.parametrize(
    "script",
    ["echo broken toolchain >&2; exit 1", '[ "$1" = --version ] && exit 0; echo broken toolchain >&2; exit 1'],
    ids=["always", "at the source"],
)
def test_a_compiler_that_fails_is_reported_and_leaves_nothing(
    cache: Path, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the compiler said is in the one warning, and no half of a library is in the cache."""
    compiler = fake_compiler(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("CXX", str(compiler))
    assert kernels.library() is None
    runs_without_kernels()
    (message,) = caplog.messages
    assert "broken toolchain" in message
    assert str(compiler) in message
    assert not cache.exists() or not list(cache.iterdir())


@needs_kernels
def test_a_compiler_that_writes_nonsense_is_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no library is no library."""
    script = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "bin", script)))
    assert kernels.library() is None
    assert len(caplog.messages) == 1
    runs_without_kernels()


@needs_kernels
def test_a_cache_that_cannot_be_written_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands where the folder should be."""
    cache.write_text("")
    assert kernels.library() is None
    assert len(caplog.messages) == 1
    runs_without_kernels()


@needs_kernels
def test_the_library_is_compiled_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start asks the compiler for its version alone; another version, or another source, compiles anew."""
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int mu_answer() { return 42; }')
    monkeypatch.setattr(kernels, "SOURCE", source)
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    compiler = fake_compiler(tmp_path / "bin", f'exec {real} "$@"')
    calls = tmp_path / "bin" / "calls"
    monkeypatch.setenv("CXX", str(compiler))
    library = kernels.library()
    assert library is not None
    assert library.mu_answer() == 42
    (made,) = cache.iterdir()
    assert len(calls.read_text().splitlines()) == 2
    calls.unlink()

    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert calls.read_text() == "--version\n"
    assert list(cache.iterdir()) == [made]

    source.write_text('extern "C" int mu_answer() { return 43; }')
    kernels.library.cache_clear()
    changed = kernels.library()
    assert changed is not None
    assert changed.mu_answer() == 43
    assert len(list(cache.iterdir())) == 2

    fake_compiler(tmp_path / "bin", f'[ "$1" = --version ] && echo newer || exec {real} "$@"')
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert len(list(cache.iterdir())) == 3


@needs_kernels
def test_a_compiler_without_openmp_makes_kernels_of_one_thread(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    """As that of macOS: the same results, whatever the number of threads."""
    qkv = scaled_qkv((2, 19, 3, 5), 1.0, 0)
    inputs = feed_forward_inputs(100, 16, 32, 1.0, 0)
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    refuses = 'for word; do [ "$word" = -fopenmp ] && { echo no OpenMP >&2; exit 1; }; done'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "bin", f'{refuses}\nexec {real} "$@"')))
    library = kernels.library()
    assert library is not None
    (made,) = cache.iterdir()
    assert library._name == str(made)
    for number in (1, 3):
        threads(number)
        assert_near(kernels.fused_attention(qkv)[0], full_attention(qkv.detach().double())[0], 1e-5)
        output = kernels.fused_feed_forward(*inputs, 0.0, NO_SEED)
        exact = doubled(*inputs)
        expected = plain_feed_forward(None, *exact)
        wanted = torch.autograd.grad(expected.sum(), exact)
        for ours, theirs in zip(torch.autograd.grad(output.sum(), inputs), wanted, strict=True):
            assert_near(ours, theirs, 1e-5)


@needs_kernels
def test_the_source_has_no_warnings(tmp_path: Path) -> None:
    """Under the compiler's common warnings, and for a processor without wide vectors."""
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    command = [real, "-std=c++17", "-fsyntax-only", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", str(kernels.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr


# --- One new token of a cached text -------------------------------------------------------------------------------


def in_steps(model: MuForCausalLM, ids: Tensor, prompt: int) -> Tensor:
    """Logits of a text given as a prompt, then token by token, from the cache."""
    with torch.no_grad():
        first = model(ids[:, :prompt], use_cache=True)
        cache = first.past_key_values
        rest = [
            model(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits
            for at in range(prompt, ids.shape[1])
        ]
    return torch.cat([first.logits, *rest], dim=1)


@needs_kernels
@pytest.mark.parametrize(("matrix_size", "heads"), [(8, 4), (8, 8), (8, 64), (12, 16), (16, 16)])
def test_a_text_in_steps_equals_the_full_pass(matrix_size: int, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for one new token, against a pass over all the text in float64; and it is what ran."""
    model = lively_model(matrix_size=matrix_size, num_attention_heads=heads, max_position_embeddings=100)
    ids = torch.randint(model.config.vocab_size, (3, 100))
    expected = model(ids).logits
    steps = []

    def counted(*arguments: Any) -> Tensor:
        steps.append(1)
        return kernels.decode_step(*arguments)

    monkeypatch.setattr(model_module, "decode_step", counted)
    made = in_steps(model.float(), ids, prompt=3)
    assert len(steps) == 97
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_texts_of_a_step_have_positions_of_their_own() -> None:
    """Given as `position_ids`, as when texts begin elsewhere than at the first position."""
    model = lively_model()
    ids, positions = torch.randint(37, (2, 9)), torch.arange(9) + torch.tensor([[0], [7]])
    expected = model(ids, position_ids=positions).logits[:, -1:]
    model.float()
    with torch.no_grad():
        cache = model(ids[:, :-1], position_ids=positions[:, :-1], use_cache=True).past_key_values
        made = model(ids[:, -1:], position_ids=positions[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@settings(deadline=None, max_examples=20)
@given(outputs=st.integers(1, 3000), inputs=st.integers(1, 100), seed=SEEDS)
@example(outputs=1024, inputs=64, seed=0)
@example(outputs=2051, inputs=16, seed=0)
def test_a_linear_map_of_one_state(outputs: int, inputs: int, seed: int) -> None:
    """Of any size, in shares of 1,024 outputs."""
    with torch.no_grad():
        state, weight, bias = randoms(seed, (1, 1, inputs), (outputs, inputs), (outputs,))
        exact = F.linear(state.double(), weight.double(), bias.double())
        assert_near(kernels.linear_of_one(state, weight, bias), exact, 1e-5)


@needs_kernels
def test_scores_far_apart_in_a_step() -> None:
    """Softmax of scores in the hundreds: nearly all weight on one key, and an entropy that is a number."""
    model = lively_model(max_position_embeddings=40)
    for layer in model.model.layers:
        layer.cross_attention.qkv.weight.data *= 6
        layer.block_attention.qkv.weight.data *= 6
    ids = torch.randint(model.config.vocab_size, (2, 40))
    expected = model(ids).logits
    torch.testing.assert_close(in_steps(model.float(), ids, prompt=5).double(), expected, rtol=1e-3, atol=1e-3)


def replaced(module: nn.Module, path: str, value: Any) -> None:
    """Set what stands at `path`."""
    *parents, name = path.split(".")
    setattr(module.get_submodule(".".join(parents)), name, value)


class NegatedLinear(nn.Linear):
    """A linear map of another class: what parametrizations make of a module in its place."""

    def forward(self, state: Tensor) -> Tensor:
        return -super().forward(state)


def clipped(layer: nn.Module) -> nn.Module:
    """A module of another class around a layer."""
    return nn.Sequential(layer, nn.Hardtanh(-0.1, 0.1))


def plain_weight(linear: nn.Linear) -> None:
    """Another weight, which is an attribute and no parameter, as some methods of quantisation leave it."""
    del linear.weight
    linear.weight = torch.eye(64)


def narrowed(feed_forward: FeedForward) -> None:
    """Fewer values inside the network, the parameters still the same objects."""
    feed_forward.up.weight.data = feed_forward.up.weight.data[:16].clone()
    feed_forward.up.bias.data = feed_forward.up.bias.data[:16].clone()
    feed_forward.down.weight.data = feed_forward.down.weight.data[:, :16].clone()


CHANGES: dict[str, Callable[[MuForCausalLM], Any]] = {
    **{
        f"hook on {where}": lambda model, where=where: model.get_submodule(where).register_forward_hook(
            lambda module, args, output: output.roll(1, -1)
        )
        for where in (
            *("model.layers.1.cross_attention.qkv", "model.layers.1.sensitivity", "model.layers.1.attention_norm"),
            *("model.layers.1.feed_forward.down", "model.layers.1", "model.token_embedding", "model.norm", "lm_head"),
        )
    },
    "hook before a layer": lambda model: model.model.layers[1].register_forward_pre_hook(
        lambda module, args: (args[0].roll(1, -1), *args[1:])
    ),
    "method": lambda model: replaced(model, "model.layers.1.feed_forward.forward", torch.zeros_like),
    "class": lambda model: replaced(model, "model.layers.1.cross_attention.out.__class__", NegatedLinear),
    "weight": lambda model: replaced(model, "model.norm.weight", nn.Parameter(torch.linspace(0, 1, 64))),
    "weight's memory": lambda model: setattr(model.model.norm.weight, "data", torch.linspace(0, 1, 64)),
    "weight's layout": lambda model: setattr(
        model.model.layers[0].cross_attention.out.weight, "data", torch.randn(64, 64).T
    ),
    "weight's numbers": lambda model: model.model.layers[1].feed_forward.up.weight.data.mul_(0.5),
    "module of the same class": lambda model: replaced(model, "model.layers.1.cross_attention.out", nn.Linear(64, 64)),
    "module of another class": lambda model: replaced(model, "lm_head", clipped(model.lm_head)),
    "module without bias": lambda model: replaced(
        model, "model.layers.1.cross_attention.out", nn.Linear(64, 64, bias=False)
    ),
    "module in a layer": lambda model: replaced(model, "model.layers.1.block_attention.out", nn.Identity()),
    "width of one layer": lambda model: replaced(
        model, "model.layers.1.feed_forward", FeedForward(small_config(intermediate_size=16))
    ),
    "order of layers": lambda model: replaced(model, "model.layers", nn.ModuleList(reversed(model.model.layers))),
    "weight that is no parameter": lambda model: plain_weight(model.model.layers[1].cross_attention.out),
    "weight of fewer rows": lambda model: narrowed(model.model.layers[1].feed_forward),
    "epsilon": lambda model: replaced(model, "model.layers.1.attention_norm.eps", 1.0),
    "heads of one layer": lambda model: replaced(model, "model.layers.1.cross_attention.num_heads", 16),
    "largest norm of tokens": lambda model: replaced(model, "model.token_embedding.max_norm", 1.0),
    "hook on all modules": lambda model: register_module_forward_hook(
        lambda module, args, output: output.roll(1, -1) if isinstance(module, nn.LayerNorm) else None
    ),
    "table of tokens": lambda model: replaced(model, "model.token_embedding", nn.Embedding(37, 64)),
}


@needs_kernels
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_sees_every_change_of_the_model(change: str) -> None:
    """Weights are gathered once; what changes afterwards, between two tokens of a text, takes effect at once."""
    model = lively_model(max_position_embeddings=12).float().requires_grad_(False)
    ids = torch.randint(37, (1, 12))
    before = in_steps(model, ids, prompt=4)
    handle = CHANGES[change](model)
    changed, full = in_steps(model, ids, prompt=4), model(ids).logits
    torch.testing.assert_close(changed, full, rtol=1e-3, atol=1e-3)
    assert (changed - before).abs().max() > 1e-2
    if isinstance(handle, RemovableHandle):
        handle.remove()
        assert torch.equal(in_steps(model, ids, prompt=4), before)


@needs_kernels
def test_a_layer_in_training_drops_in_a_step() -> None:
    """Dropout at work in one layer, as for samples of uncertainty, also from the cache."""
    model = lively_model(dropout=0.5).float()
    ids = torch.randint(37, (1, 9))
    before = in_steps(deepcopy(model), ids, prompt=4)
    model.model.layers[1].train()
    one, two = (in_steps(model, ids, prompt=4)[:, -1] for _ in range(2))
    assert not torch.equal(one, two)
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(in_steps(model, ids, prompt=4), before)
    assert torch.equal(torch.get_rng_state(), state)


@needs_kernels
def test_a_copy_of_a_model_steps_with_its_own_weights() -> None:
    """What was gathered for a model is not handed on, and keeps neither it nor a pickle of it from working."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 9))
    before = in_steps(model, ids, prompt=4)
    copy = deepcopy(model)
    assert torch.equal(in_steps(copy, ids, prompt=4), before)
    copy.model.norm.weight.data.mul_(2)
    assert not torch.equal(in_steps(copy, ids, prompt=4), before)
    assert torch.equal(in_steps(model, ids, prompt=4), before)
    assert torch.equal(in_steps(pickle.loads(pickle.dumps(model)), ids, prompt=4), before)  # noqa: S301
    copy.model.norm.register_forward_hook(lambda module, args, output, model=copy: None)  # a cycle, as hooks make them
    in_steps(copy, ids, prompt=4)
    gone = weakref.ref(copy.model)
    del copy
    gc.collect()
    assert gone() is None


def test_the_kernel_for_a_step_is_given_every_weight() -> None:
    """Each parameter of the model but the head's stands once in what the kernel takes."""
    model = small_model().model
    given = [*model.weights(), *(weight for layer in model.layers for weight in layer.weights())]
    assert sorted(map(id, given)) == sorted(map(id, model.parameters()))


@needs_kernels
def test_a_step_that_fails_leaves_the_cache_as_it_was() -> None:
    """An id or a position beyond the tables is refused, as in the pass over a prompt."""
    model = lively_model(max_position_embeddings=12).float()
    ids = torch.randint(37, (1, 6))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        for wrong in (37, -1):
            with pytest.raises(IndexError):
                model(torch.tensor([[wrong]]), past_key_values=cache)
        with pytest.raises(IndexError):
            model(ids[:, 5:], past_key_values=cache, position_ids=torch.tensor([[12]]))
        assert {slot.get_seq_length() for slot in cache.layers} == {5}
        assert torch.equal(model(ids[:, 5:], past_key_values=cache).logits, in_steps(model, ids, prompt=5)[:, 5:])


@needs_kernels
@pytest.mark.parametrize("wrong", ["ids", "positions", "weight"])
def test_arguments_of_another_kind_leave_the_cache_as_it_was(wrong: str) -> None:
    """They are refused before a place in the cache is taken."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 6))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        given: dict[str, Any] = {"input_ids": ids[:, 5:], "past_key_values": cache}
        if wrong == "ids":
            given["input_ids"] = given["input_ids"].float()
        elif wrong == "positions":
            given["position_ids"] = torch.tensor([[5.0]])
        else:
            model.model.layers[1].feed_forward.up.to("meta")
        with pytest.raises((RuntimeError, TypeError)):
            model(**given)
    assert {slot.get_seq_length() for slot in cache.layers} == {5}


@needs_kernels
def test_a_cache_that_an_error_left_uneven_is_not_for_the_kernel() -> None:
    """Later layers have fewer tokens, and less room, than the first: the kernel would write beyond it."""
    model = lively_model(max_position_embeddings=300).float()
    ids = torch.randint(37, (1, 291))

    def fail(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        cache = model(ids[:, :1], use_cache=True).past_key_values
        handle = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 1:290], past_key_values=cache)
        handle.remove()
        assert [slot.get_seq_length() for slot in cache.layers] == [290, 290, 1, 1]
        with kernels.plain_pytorch():
            expected = model(ids[:, 290:], past_key_values=deepcopy(cache)).logits
        made = model(ids[:, 290:], past_key_values=cache).logits
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert [slot.get_seq_length() for slot in cache.layers] == [291, 291, 2, 2]


@needs_kernels
def test_a_cache_of_another_kind_is_not_for_the_kernel() -> None:
    """Of fewer texts, which PyTorch refuses; of another precision, which it takes."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 6))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="must match"):
            model(torch.zeros(2, 1, dtype=torch.long), past_key_values=cache)
        assert {slot.get_seq_length() for slot in cache.layers} == {5}
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(ids[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(mixed.float(), model(ids).logits[:, 5:], rtol=0.3, atol=0.3)


@needs_kernels
def test_a_head_of_another_width_is_refused() -> None:
    """As by PyTorch, instead of reading the states by another measure."""
    model = lively_model().float()
    model.lm_head = nn.Linear(32, 37)
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        model(torch.zeros(1, 1, dtype=torch.long), use_cache=True)


def test_a_growing_slot_is_as_that_of_transformers() -> None:
    """Through everything that generation does to a cache, also where it puts other tensors in the place of its own."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()

    def both(change: Callable[[DynamicLayer], None]) -> None:
        for slot in (ours, theirs):
            change(slot)
        if theirs.is_initialized:
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()

    def add(tokens: int, batch: int) -> Callable[[DynamicLayer], None]:
        new = torch.randn(2, batch, 3, tokens, 5, generator=generator)
        return lambda slot: slot.update(*new.unbind())

    both(add(7, 2))
    for _ in range(130):  # more than there is room for at first
        both(add(1, 2))
    both(lambda slot: slot.crop(-4))
    both(add(1, 2))
    both(lambda slot: slot.reorder_cache(torch.tensor([1, 1])))
    both(add(2, 2))
    both(lambda slot: slot.batch_repeat_interleave(2))
    both(add(1, 4))
    both(lambda slot: slot.batch_select_indices(torch.tensor([3, 0])))
    both(add(1, 2))
    copy = deepcopy(ours)
    both(add(3, 2))
    assert copy.get_seq_length() == ours.get_seq_length() - 3
    copy.update(*torch.zeros(2, 2, 3, 1, 5).unbind())
    assert torch.equal(ours.keys, theirs.keys), "a copy of the cache writes into room of its own"
    both(add(1, 2))
    for slot in (ours, theirs):
        slot.keys, slot.values = slot.keys[:1], slot.values[:1]
    both(add(1, 1))
    both(lambda slot: slot.reset())
    both(add(2, 1))


def test_a_branch_of_a_cache_does_not_write_into_the_other() -> None:
    """Two continuations of one prompt, each from a copy of its cache, as prompts are reused."""
    model = lively_model().float()
    ids = torch.randint(model.config.vocab_size, (1, 8))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        one, two = deepcopy(cache), deepcopy(cache)
        first = [model(torch.tensor([[token]]), past_key_values=one).logits for token in (1, 2, 3)]
        model(torch.tensor([[5]]), past_key_values=two)
        again = [model(torch.tensor([[token]]), past_key_values=cache).logits for token in (1, 2, 3)]
    for left, right in zip(first, again, strict=True):
        assert torch.equal(left, right)


class OwnSlot(DynamicLayer):
    """A slot as others write it, to quantise or to offload."""


def test_slots_of_another_make_are_filled_as_they_ask() -> None:
    """The kernel for a step knows the room of our own slots alone."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 9))
    with torch.no_grad():
        cache = DynamicCache()
        cache.layers = [OwnSlot() for _ in range(2 * model.config.num_hidden_layers)]
        model(ids[:, :-1], past_key_values=cache)
        made = model(ids[:, -1:], past_key_values=cache).logits
        torch.testing.assert_close(made, model(ids).logits[:, -1:], rtol=1e-4, atol=1e-4)
    assert {slot.keys.shape[2] for slot in cache.layers} == {9}


@needs_kernels
def test_weights_of_another_kind_are_refused() -> None:
    """A kernel reads memory as float32: other weights would be read as noise."""
    model = lively_model().float()
    model.model.layers[0].block_attention.qkv.double()
    with pytest.raises(TypeError, match=r"float64 on cpu.*model\.float\(\)"):
        model(torch.randint(37, (1, 5)))
    model.float()
    with torch.no_grad():
        cache = model(torch.randint(37, (1, 5)), use_cache=True).past_key_values
        model.model.layers[0].block_attention.qkv.double()
        with pytest.raises(TypeError, match=r"float64 on cpu.*model\.float\(\)"):
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)


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
    for wrong in (math.nan, math.inf, 1e39):
        with pytest.raises(OverflowError, match="float32"):
            kernels._converted(wrong, "float")
    assert not output.any()


def test_every_kernel_is_read_from_the_source() -> None:
    """Its parameters' types, and the number of threads last."""
    declared = kernels._parameters()
    called = set(re.findall(r'_call\(\s*"(mu_\w+)"', Path(str(kernels.__file__)).read_text()))
    assert called == set(declared)
    assert all(kinds[-1] == "int64_t" for kinds in declared.values())
    assert {kind for kinds in declared.values() for kind in kinds if "*" not in kind} == {"int64_t", "float"}


@needs_kernels
@pytest.mark.parametrize("rate", [0.9999999999, 1.0])
def test_dropout_of_nearly_everything_is_left_to_pytorch(rate: float) -> None:
    """What is kept is divided by 1 - p, which float32 takes for 0."""
    model = small_model().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    ids = torch.arange(20)[None]
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
