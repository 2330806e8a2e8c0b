"""How alike blocks are, held against other formulas for the same figures and against planted blocks."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mu_sota.inspection.similarity import block_similarity
from mu_sota.model.errors import InputError

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def mixed_states(seed: int, tokens: int, blocks: int, size: int) -> Tensor:
    """Blocks that share directions, of different scales and means; in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = torch.einsum("nt,its->nis", normal(tokens, size), normal(blocks, size, size))
    return (common + normal(tokens, blocks, size)) * normal(blocks, 1).exp() + 3 * normal(blocks, size)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def turn(size: int) -> Tensor:
    return torch.linalg.qr(noise(size, size)).Q


shapes = st.tuples(st.integers(0, 99), st.integers(16, 40), st.integers(2, 5), st.integers(1, 6))
"""Seed, tokens, blocks, values."""


@settings(max_examples=20)
@given(shape=shapes)
def test_cka_is_that_of_gram_matrices(shape: tuple[int, int, int, int]) -> None:
    """HSIC (Gretton et al. 2005) of n x n matrices of inner products between tokens."""
    states = mixed_states(*shape)
    n = len(states)
    centring = np.eye(n) - np.ones((n, n)) / n
    grams = [centring @ block @ block.T @ centring for block in states.transpose(0, 1).numpy()]
    found = block_similarity(states).cka
    for i, one in enumerate(grams):
        for j, other in enumerate(grams):
            expected = np.trace(one @ other) / math.sqrt(np.trace(one @ one) * np.trace(other @ other))
            assert found[i, j].item() == pytest.approx(expected)


@settings(max_examples=20)
@given(shape=shapes)
def test_r2_is_that_of_a_regression_with_a_column_of_ones(shape: tuple[int, int, int, int]) -> None:
    states = mixed_states(*shape).numpy()
    half = len(states) // 2
    found = block_similarity(torch.from_numpy(states)).r2
    for i in range(states.shape[1]):
        inputs = np.concatenate([np.ones((len(states), 1)), states[:, i]], axis=1)
        for j in range(states.shape[1]):
            targets = states[:, j]
            maps, *_ = np.linalg.lstsq(inputs[:half], targets[:half], rcond=None)
            left = ((targets[half:] - inputs[half:] @ maps) ** 2).mean(0)
            by_value, weights = 1 - left / targets[half:].var(0), targets[half:].var(0)
            assert found[i, j].item() == pytest.approx(np.average(by_value, weights=weights), rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(shape=shapes)
def test_effective_ranks_and_cosines_are_those_of_their_definitions(shape: tuple[int, int, int, int]) -> None:
    states = mixed_states(*shape).numpy()
    found = block_similarity(torch.from_numpy(states))
    for i in range(states.shape[1]):
        # The singular values of a covariance are its eigenvalues: the squares of those of the centred block.
        weights = np.linalg.svd(states[:, i] - states[:, i].mean(0), compute_uv=False) ** 2
        shares = weights / weights.sum()
        assert found.effective_rank[i].item() == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
        for j in range(states.shape[1]):
            cosines = [
                one @ other / math.sqrt((one @ one) * (other @ other))
                for one, other in zip(states[:, i], states[:, j], strict=True)
            ]
            assert found.cosine[i, j].item() == pytest.approx(np.mean(cosines))


@settings(max_examples=20)
@given(shape=shapes)
def test_figures_are_within_their_bounds_and_follow_the_blocks(shape: tuple[int, int, int, int]) -> None:
    states = mixed_states(*shape)
    found = block_similarity(states)
    torch.testing.assert_close(found.cka, found.cka.T, **CLOSE)
    torch.testing.assert_close(found.cka.diagonal(), torch.ones(shape[2], dtype=torch.float64), **CLOSE)
    assert found.cka.min() >= 0
    assert found.cka.max() < 1 + 1e-12
    assert found.r2.max() < 1 + 1e-12
    assert found.effective_rank.min() > 1 - 1e-12
    assert found.effective_rank.max() < shape[3] + 1e-9
    order = torch.randperm(shape[2], generator=torch.Generator().manual_seed(shape[0]))
    reordered = block_similarity(states[:, order])
    torch.testing.assert_close(reordered.cka, found.cka[order][:, order], **CLOSE)
    torch.testing.assert_close(reordered.r2, found.r2[order][:, order], **CLOSE)
    torch.testing.assert_close(reordered.effective_rank, found.effective_rank[order], **CLOSE)
    torch.testing.assert_close(reordered.cosine, found.cosine[order][:, order], **CLOSE)


def test_a_turned_scaled_and_shifted_copy_is_the_same_block() -> None:
    block = noise(500, 4)
    found = block_similarity(torch.stack([block, -7.0 * block @ turn(4) + 2.0, noise(500, 8)[:, 4:]], dim=1))
    assert found.cka[0, 1].item() == pytest.approx(1)
    assert found.r2[0, 1].item() == found.r2[1, 0].item() == pytest.approx(1)
    assert found.effective_rank[0].item() == pytest.approx(found.effective_rank[1].item())
    assert found.most_alike == (0, 1)
    assert found.cosine[0, 1].abs() < 0.5


def test_independent_noise_is_not_alike() -> None:
    found = block_similarity(noise(20_000, 3, 4))
    apart = ~torch.eye(3, dtype=torch.bool)
    assert found.cka[apart].max() < 2e-3
    assert found.r2[apart].abs().max() < 2e-3
    assert found.cosine[apart].abs().max() < 2e-2


def test_rows_predict_columns() -> None:
    """A block with two of another's four values is known from it, and tells half of it."""
    whole = noise(4000, 4)
    part = torch.cat([whole[:, :2], 0 * whole[:, :2]], dim=-1)
    found = block_similarity(torch.stack([whole, part], dim=1))
    assert found.r2[0, 1].item() == pytest.approx(1)
    assert found.r2[1, 0].item() == pytest.approx(0.5, abs=0.03)


def test_values_with_more_variance_weigh_more_in_r2() -> None:
    one, other = noise(4000, 2).unbind(1)
    found = block_similarity(torch.stack([torch.stack([one, one], -1), torch.stack([3 * one, other], -1)], dim=1))
    assert found.r2[0, 1].item() == pytest.approx(0.9, abs=0.01)


def test_r2_is_below_zero_where_the_halves_differ() -> None:
    states = noise(400, 2, 4)
    states[200:] += 10
    assert block_similarity(states).r2.tolist()[0][1] < -50


@pytest.mark.parametrize("size", [4, 9])
def test_effective_rank_counts_directions(size: int) -> None:
    every = noise(50_000, size)
    one = every[:, :1] * noise(1, size) + 5
    two = torch.nn.functional.pad(every[:, :2], (0, size - 2)) @ turn(size)
    found = block_similarity(torch.stack([every, one, two], dim=1)).effective_rank
    assert found[0].item() == pytest.approx(size, rel=1e-3)
    assert found[1].item() == pytest.approx(1, abs=1e-6)
    assert found[2].item() == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_block_is_like_no_other(value: float, dtype: torch.dtype) -> None:
    states = noise(999, 3, 4).to(dtype)
    states[:, 1] = value
    found = block_similarity(states)
    assert found.cka[1].tolist() == found.cka[:, 1].tolist() == [0, 0, 0]
    assert found.r2[:, 1].tolist() == [0, 0, 0]
    assert found.r2[1].abs().max() < 0.02  # of a constant, the best prediction is the mean of the first half
    assert found.effective_rank[1] == 0
    assert found.cosine.isfinite().all()
    assert found.most_alike == (0, 2)


@pytest.mark.parametrize("value", [0.1, 0.3, 7.7])
def test_a_block_that_is_constant_in_one_half_has_an_r2(value: float) -> None:
    """Constant where maps are fitted, it predicts the mean; constant where they are measured, there is no variance."""
    states = noise(999, 3, 3)
    states[:499, 0] = states[499:, 1] = value
    r2 = block_similarity(states).r2
    targets = states[:, 2]
    missed = (targets[499:] - targets[:499].mean(0)).square().sum()
    variance = (targets[499:] - targets[499:].mean(0)).square().sum()
    assert r2[0, 2].item() == pytest.approx(1 - (missed / variance).item(), abs=1e-9)
    assert r2[:, 1].tolist() == [0, 0, 0]
    assert r2.isfinite().all()


def test_nothing_but_constant_blocks_has_figures_too() -> None:
    found = block_similarity(torch.full((20, 3, 2), 0.1))
    assert found.cka.abs().sum() == found.r2.abs().sum() == found.effective_rank.sum() == 0
    assert found.most_alike == (0, 1)


def test_values_that_depend_on_each_other_predict_as_well() -> None:
    block = noise(300, 2)
    states = torch.stack([torch.cat([block, block], -1), noise(4, 4)[0] * torch.cat([block, block], -1)], dim=1)
    torch.testing.assert_close(block_similarity(states).r2, torch.ones(2, 2, dtype=torch.float64), **CLOSE)


def test_figures_are_in_float64() -> None:
    """Far from zero, float32 has no digits for products."""
    states = (1e4 + noise(200, 2, 3)).float()
    found, exact = block_similarity(states), block_similarity(states.double() - 1e4)
    for name in ("cka", "r2", "effective_rank"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), **CLOSE)


def test_the_record_can_be_read_back() -> None:
    found = block_similarity(mixed_states(3, 40, 16, 4))
    record = json.loads(json.dumps(found.as_dict()))
    for name in ("cka", "r2", "effective_rank", "cosine"):
        assert record[name] == getattr(found, name).tolist()
    assert record["most_alike"] == list(found.most_alike)


@pytest.mark.parametrize("shape", [(40, 4), (40, 1, 4), (9, 3, 4), (2, 40, 3, 4)])
def test_states_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"states have the shape \[.*\], but must have \[tokens, blocks, values\]"):
        block_similarity(torch.zeros(shape))


def test_as_many_tokens_as_a_map_needs_are_enough() -> None:
    assert block_similarity(noise(10, 3, 4)).r2.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    states = noise(40, 3, 4)
    states[7, 1, 2] = value
    with pytest.raises(InputError, match="not finite"):
        block_similarity(states)
