"""Hashed pairs of tokens: which row of a table stands for a token after another.

Legend: B batch, T time.
"""

import torch
from torch import Tensor
from transformers import Cache

_NO_TOKEN = -1  # before the first token of a text, and after padding
# Odd numbers of 32 bits that spread nearby ids over all rows; products with ids of 20 bits stay below 2^53.
_OF_PREVIOUS, _OF_TOKEN = 0x9E3779B1, 0x85EBCA77


def pair_rows(previous: Tensor, ids: Tensor, rows: int) -> Tensor:
    """The row of each pair, [B, T]: the same on every device, and different pairs may share one.

    Args:
        previous: [B, T], the token before, or -1 where there is none.
        ids: [B, T].
        rows: of the table.
    """
    mixed = (previous + 1) * _OF_PREVIOUS + (ids + 1) * _OF_TOKEN
    mixed = mixed ^ (mixed >> 15)
    return (mixed ^ (mixed >> 29)) % rows


def previous_tokens(
    ids: Tensor, mask: Tensor | None, cache: Cache | None, cache_layer: int, past: int | Tensor
) -> Tensor:
    """The token before each one, [B, T]; -1 at the beginning of a text and after padding.

    Args:
        ids: [B, T], new tokens.
        mask: as in `attention.attention_bias`.
        cache: keeps the ids in a cache layer of their own, where it is cropped and reordered with all others.
        cache_layer: its index.
        past: number of cached tokens.
    """
    batch, new = ids.shape
    known = ids
    if cache is not None:
        known = cache.update(ids[:, None, :, None], ids[:, None, :, None], cache_layer)[0][:, 0, :, 0]
    before = past - 1 + torch.arange(new, device=ids.device)  # position of the token before each new one
    index = before.clamp(min=0).expand(batch, new)
    previous = known.gather(1, index)
    there = (before >= 0).expand(batch, new)
    if mask is not None and mask.dim() == 2:
        there = there & mask.bool().gather(1, index)
    elif mask is not None:
        seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(batch, -1, -1)
        there = there & seen.gather(2, index[:, :, None])[:, :, 0]
    return previous.masked_fill(~there, _NO_TOKEN)
