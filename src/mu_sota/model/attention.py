"""Causal attention with many small heads, and the exact entropy of its rows without the attention matrix.

Legend: B batch, H heads, T time, K size of a head. There may be more keys and values than queries: those of the cached
tokens, or capacity of a cache that is not yet filled. `bias` is that of `attention_bias`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LSE_ROWS = 128  # query rows whose scores are held at once when only the log-sum-exp is wanted
_HALF = (torch.float16, torch.bfloat16)
_WIDEST_FLASH = 256  # values of a head


def attention_bias(
    mask: Tensor | None, queries: int, keys: int, past: int | Tensor, device: torch.device
) -> Tensor | None:
    """Additive causal bias [B or 1, 1, queries, keys], 0 or -inf; None where plain causal attention is meant.

    None means that query i sees the keys up to its own position, in a full text or for one token after a cached text.

    Args:
        mask: None, or [B, past + queries], 1 at tokens and 0 at padding. A padding position sees itself, so that its
            row is finite; no other position sees it. Or [B, 1, queries, keys], which `generate` makes for caches of a
            fixed size: bool, or 0 where a key is seen.
        queries: number of new tokens.
        keys: number of keys: past + queries, or more in a cache of a fixed size.
        past: number of cached tokens.

    Raises:
        ValueError: the mask does not cover the cached and the new tokens.
    """
    if mask is not None and mask.dim() == 2 and mask.shape[-1] != past + queries:
        raise ValueError(
            f"the attention_mask covers {mask.shape[-1]} tokens, but the cache holds {int(past)} and {queries} are new"
        )
    unpadded = mask is None or (mask.dim() == 2 and bool(mask.all()))
    if unpadded and keys == past + queries and (queries == 1 or past == 0):
        return None
    position = past + torch.arange(queries, device=device)[:, None]
    at = torch.arange(keys, device=device)
    visible = (at <= position)[None, None]
    if mask is not None and mask.dim() == 4:
        visible = visible & (mask if mask.dtype == torch.bool else mask == 0)
    elif mask is not None:
        visible = visible & F.pad(mask.bool(), (0, keys - mask.shape[-1]))[:, None, None]
    visible = visible | (at == position)
    return torch.zeros(visible.shape, device=device).masked_fill(~visible, float("-inf"))


def rotary_turns(position_ids: Tensor, size: int) -> Tensor:
    """Cosines and sines of the angles by which pairs of a head of K values turn, [2, B, T, 1, 1, K // 2] in float32.

    Pair i turns by 10,000^(-2i / K) a position (Su et al. 2021, eq. 15).
    """
    pairs = size // 2
    steps = 10_000 ** -(torch.arange(pairs, device=position_ids.device) / max(pairs, 1))
    angles = position_ids[:, :, None, None, None] * steps
    return torch.stack([angles.cos(), angles.sin()])


def rotated(heads: Tensor, turns: Tensor) -> Tensor:
    """Queries and keys of [B, T, 3, H, K] turned; values, and an odd last value, as they are."""
    cos, sin = turns.unbind()
    pairs = heads.shape[-1] // 2
    first, second, rest = heads[:, :, :2].split([pairs, pairs, heads.shape[-1] - 2 * pairs], dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return torch.cat([turned.to(heads.dtype), heads[:, :, 2:]], dim=2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention [B, H, T, K] in which position t sees positions up to t (Vaswani et al. 2017, eq. 1)."""
    bias = None if bias is None else bias.to(query.dtype)
    size = query.shape[-1]
    causal = bias is None and query.shape[-2] > 1  # a single query sees all that is cached
    if query.device.type != "cpu" and query.dtype in _HALF:
        # On GPUs the kernels that do not hold the matrix want half-precision heads of a multiple of 8.
        query, key, value = (F.pad(tensor, (0, -size % 8)) for tensor in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal, scale=size**-0.5)
    return mixed[..., :size]


def causal_attention_with_entropy(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `causal_attention`, and the entropy in nats of every attention row, [B, H, T]; both differentiable.

    With scores s = q k / sqrt(K) and p = softmax(s), the entropy is logsumexp(s) - sum(p s), and sum(p s) =
    q . (p k) / sqrt(K): attention over the values [v, k] gives it at the cost of K more columns, and the T x T matrix
    is never held. PyTorch's fused attentions return the log-sum-exp beside their output.

    In the derivative of that formula the terms through logsumexp and through q outside of p cancel against each other,
    as do those through k inside p k; what is left is the path through p alone. So both are taken as constants, and the
    kernel's own backward pass gives the exact gradient. (`mu_attention_backward` in `kernels.cpp` has it as a formula.)
    """
    scale = query.shape[-1] ** -0.5
    bias = None if bias is None else bias.to(query.dtype)
    exact = torch.promote_types(query.dtype, torch.float32)
    if query.shape[-2] == 1:  # one token after a cached text: its row is small, and a copy of all keys is not
        scores = (query @ key.transpose(-2, -1)).to(exact) * scale
        row = (scores if bias is None else scores + bias).softmax(-1)
        return row.to(value.dtype) @ value, torch.special.entr(row).sum(-1)
    causal = bias is None
    values = torch.cat([value, key.detach()], dim=-1)
    size = query.shape[-1]
    # The fast kernels want queries, keys and values of one size, on GPUs a multiple of 8: zeros add nothing to a score.
    width = 2 * size if query.device.type == "cpu" else -(-2 * size // 8) * 8
    wide_query, wide_key, values = (F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in (query, key, values))
    if query.device.type == "cpu":
        mixed, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            wide_query, wide_key, values, 0.0, causal, attn_mask=bias, scale=scale
        )
    elif query.device.type == "cuda" and query.dtype != torch.float64:
        if causal and query.dtype in _HALF and width <= _WIDEST_FLASH and _has_flash_attention(query.device):
            mixed, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention(
                wide_query, wide_key, values, 0.0, True, scale=scale
            )[:2]
        else:
            mixed, log_sum_exp = torch.ops.aten._scaled_dot_product_efficient_attention(
                wide_query, wide_key, values, _aligned(bias, query), True, 0.0, causal, scale=scale
            )[:2]
        log_sum_exp = log_sum_exp[..., : query.shape[-2]]  # the second one rounds the number of rows up
    else:
        mixed = F.scaled_dot_product_attention(
            wide_query, wide_key, values, attn_mask=bias, is_causal=causal, scale=scale
        )
        log_sum_exp = row_log_sum_exp(query, key, bias)
    output, mean_key = mixed[..., : 2 * size].chunk(2, dim=-1)
    mean_score = scale * (query.detach().to(exact) * mean_key.to(exact)).sum(-1)
    return output, log_sum_exp.detach() - mean_score


@torch.compiler.assume_constant_result
def _has_flash_attention(device: torch.device) -> bool:
    """True from the A100 on, if PyTorch was built with it. A T4 and a P100 have the other fused attention alone."""
    there = torch.backends.cuda.is_flash_attention_available() and torch.backends.cuda.flash_sdp_enabled()
    return there and torch.cuda.get_device_capability(device) >= (8, 0)


def _aligned(bias: Tensor | None, query: Tensor) -> Tensor | None:
    """The bias for each head [B, H, T, keys], its rows a multiple of 16 numbers apart, which the kernel asks for."""
    if bias is None:
        return None
    keys = bias.shape[-1]
    return F.pad(bias, (0, -keys % 16))[..., :keys].expand(*query.shape[:2], -1, -1)


@torch.no_grad()
def row_log_sum_exp(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """log(sum(exp(scores))) of every causal attention row, [B, H, T] in float32 at least, a few rows at a time."""
    exact = torch.promote_types(query.dtype, torch.float32)
    length, size = query.shape[-2:]
    positions = torch.arange(length, device=query.device)
    pieces = []
    for start in range(0, length, _LSE_ROWS):
        rows = slice(start, start + _LSE_ROWS)
        scores = (query[..., rows, :] @ key.transpose(-2, -1)).to(exact) * size**-0.5
        if bias is None:
            scores = scores.masked_fill(positions > positions[rows, None], float("-inf"))
        else:
            scores = scores + bias[..., rows, :]
        pieces.append(scores.logsumexp(-1))
    return torch.cat(pieces, dim=-1)
