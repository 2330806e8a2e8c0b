"""A model without some of its blocks: zero ablation of the state."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mu_sota.common.hooks import attached
from mu_sota.model.blocks import BLOCKS, join_blocks, split_blocks
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM


@contextmanager
def blocks_off(model: MuForCausalLM, names: Iterable[str]) -> Iterator[None]:
    """Within the context, the named blocks are 0 wherever a layer or the final norm reads the state.

    What embeddings or layers write into these blocks is lost to all later layers, in full passes and in `generate`
    alike, cached or not. Token and position embeddings, affinities and all weights stay, so the other blocks'
    sensitivities still follow from the token. LayerNorm sees the zeros, and scales the other blocks up a little.
    Contexts add up: each switches its own blocks off.

    Raises:
        InputError: a name is no block's.
    """
    known = [block.name for block in BLOCKS]
    off = torch.zeros(len(BLOCKS), 1, dtype=torch.bool)
    for name in names:
        if name not in known:
            raise InputError(f"no block is named {name!r}; the blocks are {', '.join(known)}")
        off[known.index(name)] = True

    def set_to_zero(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        state = inputs[0]
        return (join_blocks(split_blocks(state).masked_fill(off.to(state.device), 0)), *inputs[1:])

    readers = (*model.model.layers, model.model.norm) if off.any() else ()
    with attached(reader.register_forward_pre_hook(set_to_zero) for reader in readers):
        yield
