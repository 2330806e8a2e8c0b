"""The 16 blocks and the mapping between a block-major state and its matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mu_sota.model.blocks import (
    BLOCKS,
    NUM_BLOCKS,
    block_diagonal,
    cells,
    from_matrix,
    join_blocks,
    split_blocks,
    to_matrix,
)

# The table of the specification for an 8 x 8 matrix numbered 0 to 63 row by row, written out by hand.
VALUES_OF_BLOCK = {
    "I": [0, 1, 8, 9],
    "S": [2, 3, 10, 11],
    "C1": [4, 5, 12, 13],
    "C2": [6, 7, 14, 15],
    "R1": [16, 17, 24, 25],
    "R2": [18, 19, 26, 27],
    "T": [20, 21, 28, 29],
    "K": [22, 23, 30, 31],
    "G": [32, 33, 40, 41],
    "M": [34, 35, 42, 43],
    "D": [36, 37, 44, 45],
    "F": [38, 39, 46, 47],
    "P": [48, 49, 56, 57],
    "E": [50, 51, 58, 59],
    "A": [52, 53, 60, 61],
    "X": [54, 55, 62, 63],
}

SIDES = st.integers(1, 5)  # of a block
LEADING = st.lists(st.integers(0, 3), max_size=3)


def numbered(matrix_size: int, leading: list[int] | None = None) -> Tensor:
    """[..., M, M] numbered from 0 on, row by row."""
    shape = (*(leading or []), matrix_size, matrix_size)
    return torch.arange(torch.Size(shape).numel()).view(shape)


def test_the_blocks_are_those_of_the_specification() -> None:
    """Sixteen names in reading order; names are part of every record, so neither may change."""
    assert [block.name for block in BLOCKS] == list(VALUES_OF_BLOCK)
    assert len(BLOCKS) == NUM_BLOCKS == 16
    assert len({block.meaning for block in BLOCKS}) == 16


@pytest.mark.parametrize(("index", "name"), list(enumerate(VALUES_OF_BLOCK)))
def test_every_block_holds_its_values(index: int, name: str) -> None:
    """Block-major row, matrix and `cells` tell the same of one block."""
    matrix = numbered(8)
    assert split_blocks(from_matrix(matrix))[index].tolist() == VALUES_OF_BLOCK[name]
    assert matrix[cells(name, 8)].flatten().tolist() == VALUES_OF_BLOCK[name]

    state = torch.zeros(16, 4)
    state[index] = 1
    marked = to_matrix(join_blocks(state)).flatten().nonzero().flatten()
    assert marked.tolist() == VALUES_OF_BLOCK[name]


def test_a_plain_reshape_is_not_the_mapping() -> None:
    """The defect of the earlier implementation: 64 values reshaped to 16 x 4 are half-rows."""
    matrix = numbered(8)
    half_rows = matrix.view(16, 4)
    blocks = split_blocks(from_matrix(matrix))
    assert not any(torch.equal(block, half_row) for block, half_row in zip(blocks, half_rows, strict=True))


@given(side=SIDES, leading=LEADING)
def test_the_mapping_has_an_inverse(side: int, leading: list[int]) -> None:
    """Both ways round, for every size and any leading shape."""
    matrix = numbered(4 * side, leading)
    state = from_matrix(matrix)
    assert state.shape == (*leading, (4 * side) ** 2)
    assert torch.equal(to_matrix(state), matrix)

    other = matrix.flatten(-2)
    assert torch.equal(from_matrix(to_matrix(other)), other)
    assert torch.equal(join_blocks(split_blocks(other)), other)
    assert split_blocks(other).shape == (*leading, 16, side * side)


@given(inputs=st.integers(1, 4), outputs=st.integers(1, 4))
def test_maps_of_blocks_as_one_map_of_states(inputs: int, outputs: int) -> None:
    """On a GPU one product does all blocks; no block reads another."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, outputs, inputs, generator=generator, dtype=torch.float64)
    state = torch.randn(3, 16 * inputs, generator=generator, dtype=torch.float64)
    whole = split_blocks(state @ block_diagonal(weight).T)
    for index in range(16):
        torch.testing.assert_close(whole[:, index], split_blocks(state)[:, index] @ weight[index].T)


@given(side=SIDES)
def test_cells_tile_the_matrix_in_block_order(side: int) -> None:
    """Every cell belongs to one block, and block b's cells hold row b of the block-major state."""
    matrix = numbered(4 * side)
    blocks = split_blocks(from_matrix(matrix))
    for index, block in enumerate(BLOCKS):
        assert torch.equal(matrix[cells(block.name, 4 * side)].flatten(), blocks[index])
    assert sorted(blocks.flatten().tolist()) == list(range(16 * side * side))


def test_an_unknown_name_is_named_in_the_error() -> None:
    """The message also lists the names there are."""
    with pytest.raises(KeyError, match=r"no block is named 'Q'; the blocks are I, S, C1, C2, R1"):
        cells("Q", 8)
