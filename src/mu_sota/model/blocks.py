"""The 16 semantic blocks and the one mapping between the two views of a token's state.

Legend: M side of the state matrix, D = M * M values, N = 16 blocks, S = D / N values a block.

A state is an M x M matrix, tiled by a 4 x 4 grid of square blocks in reading order. The model stores it *block-major*:
the N blocks one after the other, the S values of a block row by row. Splitting into blocks is then a plain view, and
the matrix is what `to_matrix` gives. These functions are the only place where the package regroups a state.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A semantic block: its short name, and the part of meaning it is reserved for."""

    name: str
    meaning: str


BLOCKS = (
    Block("I", "identity: core token meaning"),
    Block("S", "structure: grammatical properties"),
    Block("C1", "local context"),
    Block("C2", "document context"),
    Block("R1", "syntactic relations"),
    Block("R2", "semantic relations"),
    Block("T", "transformation, composition"),
    Block("K", "world knowledge"),
    Block("G", "global coherence"),
    Block("M", "modality: tense, mood, certainty"),
    Block("D", "discourse"),
    Block("F", "semantic frame roles"),
    Block("P", "position"),
    Block("E", "entity"),
    Block("A", "affect"),
    Block("X", "extension, free"),
)
"""The blocks in reading order of the 4 x 4 grid. The names are intentions; what a block carries is to be measured."""

NUM_BLOCKS = len(BLOCKS)
GRID = 4


def cells(name: str, matrix_size: int) -> tuple[slice, slice]:
    """Rows and columns of the M x M matrix that the block `name` covers.

    Raises:
        KeyError: there is no block of that name.
    """
    names = [block.name for block in BLOCKS]
    if name not in names:
        raise KeyError(f"no block is named {name!r}; the blocks are {', '.join(names)}")
    row, column = divmod(names.index(name), GRID)
    side = matrix_size // GRID
    return slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)


def split_blocks(state: Tensor) -> Tensor:
    """[..., D] block-major to [..., N, S], one row a block."""
    return state.unflatten(-1, (NUM_BLOCKS, -1))


def join_blocks(blocks: Tensor) -> Tensor:
    """[..., N, S] to [..., D] block-major: the inverse of `split_blocks`."""
    return blocks.flatten(-2)


def block_diagonal(weight: Tensor) -> Tensor:
    """Maps of each block [N, out, in] as one map of whole states [N * out, N * in], zero between different blocks."""
    own = torch.eye(NUM_BLOCKS, dtype=weight.dtype, device=weight.device)
    return (weight[:, :, None, :] * own[:, None, :, None]).flatten(2).flatten(0, 1)


def to_matrix(state: Tensor) -> Tensor:
    """[..., D] block-major to the [..., M, M] matrix."""
    side = round((state.shape[-1] / NUM_BLOCKS) ** 0.5)
    by_block = state.unflatten(-1, (GRID, GRID, side, side))  # grid row, grid column, row, column
    return by_block.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def from_matrix(matrix: Tensor) -> Tensor:
    """[..., M, M] matrix to [..., D] block-major: the inverse of `to_matrix`."""
    side = matrix.shape[-1] // GRID
    by_row = matrix.unflatten(-1, (GRID, side)).unflatten(-3, (GRID, side))  # grid row, row, grid column, column
    return by_row.transpose(-3, -2).flatten(-4)
