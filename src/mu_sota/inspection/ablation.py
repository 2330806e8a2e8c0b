"""A model some of whose blocks are replaced where the state is read: by other values, or by 0 (zero ablation)."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import attached
from mu_sota.model.blocks import BLOCKS, join_blocks, split_blocks
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM


def readers(model: MuForCausalLM) -> list[nn.Module]:
    """The L + 1 modules that read the state, in order: the layers and the final norm. Their indices are *places*."""
    return [*model.model.layers, model.model.norm]


@contextmanager
def blocks_replaced(model: MuForCausalLM, names: Iterable[str], values: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the context, the named blocks have other values where the state is read, at some places or at all.

    What embeddings or layers wrote into these blocks is lost to a reader whose place is among `values`: a layer
    computes, and adds to, the other values. Everything else stays, as in `blocks_off`. Contexts add up: where two
    replace the same block, the later one counts.

    Args:
        names: of blocks.
        values: by place, 0 to L as `readers` counts them, what is read there: [B, T, N, S], or a shape that broadcasts
            to it. Of all N blocks, the named ones alone are taken.

    Raises:
        InputError: a name is no block's.
    """
    known = [block.name for block in BLOCKS]
    replaced = torch.zeros(len(BLOCKS), 1, dtype=torch.bool)
    for name in names:
        if name not in known:
            raise InputError(f"no block is named {name!r}; the blocks are {', '.join(known)}")
        replaced[known.index(name)] = True

    def replacing(place: int) -> Any:
        def replace(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            state = inputs[0]
            blocks = torch.where(replaced.to(state.device), values[place].to(state), split_blocks(state))
            return (join_blocks(blocks), *inputs[1:])

        return replace

    places = values if replaced.any() else ()
    modules = readers(model)
    with attached(modules[place].register_forward_pre_hook(replacing(place)) for place in places):
        yield


def blocks_off(model: MuForCausalLM, names: Iterable[str]) -> AbstractContextManager[None]:
    """Within the context, the named blocks are 0 wherever a layer or the final norm reads the state.

    What embeddings or layers write into these blocks is lost to all later layers, in full passes and in `generate`
    alike, cached or not. Token and position embeddings, affinities and all weights stay, so the other blocks'
    sensitivities still follow from the token. LayerNorm sees the zeros, and scales the other blocks up a little.
    Contexts add up: each switches its own blocks off.

    Raises:
        InputError: a name is no block's; when the context is entered.
    """
    return blocks_replaced(model, names, dict.fromkeys(range(len(readers(model))), torch.zeros(())))
