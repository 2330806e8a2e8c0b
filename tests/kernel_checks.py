"""Shared by the tests of kernels, backend, decoding and cache."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from mu_sota import MuForCausalLM
from mu_sota.model import kernels

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="the CPU kernels cannot be compiled here")

LENGTHS = st.integers(1, 70)
SEEDS = st.integers(0, 10_000)
NO_SEED = torch.zeros((), dtype=torch.int64)
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


def scaled_qkv(shape: tuple[int, int, int, int], scale: float, seed: int) -> Tensor:
    """[B, T, 3, H, K] whose scores are of the order of `scale`."""
    batch, length, heads, size = shape
    (qkv,) = randoms(seed, (batch, length, 3, heads, size))
    with torch.no_grad():
        qkv[:, :, :2] *= math.sqrt(scale)
    return qkv


def full_attention(qkv: Tensor) -> tuple[Tensor, Tensor, float]:
    """From [B, T, 3, H, K] and the whole matrix: output [B, T, H, K], entropy [B, H, T], and the largest score."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
    logs = scores.masked_fill(hidden, -math.inf).log_softmax(-1)
    weights = logs.exp()
    entropy = -(weights * logs.masked_fill(hidden, 0)).sum(-1)
    return (weights @ value).transpose(1, 2), entropy, float(scores.detach().abs().max())


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
