"""Causal attention with many small heads, and the exact entropy of its rows without the attention matrix.

Legend: B batch, H heads, T time, K size of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LSE_ROWS = 128  # query rows whose scores are held at once when only the log-sum-exp is wanted


def attention_bias(padding: Tensor | None) -> Tensor | None:
    """Additive causal bias [B, 1, T, T], 0 or -inf, for a batch with padding; None where nothing is padded.

    Args:
        padding: [B, T], 1 at tokens and 0 at padding, or None. A position of padding sees itself, so that its row is
            finite; nothing else sees it.
    """
    if padding is None or bool(padding.all()):
        return None
    length = padding.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=padding.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=padding.device)
    visible = (causal & padding.bool()[:, None, None, :]) | itself
    return torch.zeros(visible.shape, device=padding.device).masked_fill(~visible, float("-inf"))


def causal_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention [B, H, T, K] in which position t sees positions up to t (Vaswani et al. 2017, eq. 1)."""
    bias = None if bias is None else bias.to(query.dtype)
    size = query.shape[-1]
    if query.device.type != "cpu" and query.dtype in (torch.float16, torch.bfloat16):
        # On GPUs the kernels that do not hold the matrix want half-precision heads of a multiple of 8.
        query, key, value = (F.pad(tensor, (0, -size % 8)) for tensor in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=bias is None, scale=size**-0.5)
    return mixed[..., :size]


def causal_attention_with_entropy(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `causal_attention`, and the entropy in nats of every attention row, [B, H, T]; both differentiable.

    With scores s = q k / sqrt(K) and p = softmax(s), the entropy is logsumexp(s) - sum(p s), and sum(p s) =
    q . (p k) / sqrt(K): attention over the values [v, k] gives it at the cost of K more columns, and the T x T matrix
    is never held. In the derivative of that formula the terms through logsumexp and through q outside of p cancel
    against each other, as do those through k inside p k; what is left is the path through p alone. So both are taken
    as constants, and the kernel's own backward pass gives the exact gradient.
    """
    size = query.shape[-1]
    bias = None if bias is None else bias.to(query.dtype)
    values = torch.cat([value, key.detach()], dim=-1)
    # The fast kernels want queries, keys and values of one size: zeros add nothing to a score.
    wide_query, wide_key = F.pad(query, (0, size)), F.pad(key, (0, size))
    scale = size**-0.5
    if query.device.type == "cpu":
        mixed, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            wide_query, wide_key, values, 0.0, bias is None, attn_mask=bias, scale=scale
        )
    else:
        mixed = F.scaled_dot_product_attention(
            wide_query, wide_key, values, attn_mask=bias, is_causal=bias is None, scale=scale
        )
        log_sum_exp = row_log_sum_exp(query, key, bias)
    output, mean_key = mixed.split(size, dim=-1)
    exact = torch.promote_types(query.dtype, torch.float32)
    mean_score = scale * (query.detach().to(exact) * mean_key.to(exact)).sum(-1)
    return output, log_sum_exp.detach() - mean_score


@torch.no_grad()
def row_log_sum_exp(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """log(sum(exp(scores))) of every causal attention row, [B, H, T] in float32 at least, a few rows at a time."""
    exact = torch.promote_types(query.dtype, torch.float32)
    length, size = query.shape[-2:]
    positions = torch.arange(length, device=query.device)
    pieces = []
    for start in range(0, length, _LSE_ROWS):
        rows = slice(start, min(start + _LSE_ROWS, length))
        scores = (query[..., rows, :] @ key[..., : rows.stop, :].transpose(-2, -1)).to(exact) * size**-0.5
        if bias is not None:
            scores = scores + bias[..., rows, : rows.stop]
        future = positions[None, : rows.stop] > positions[rows, None]
        pieces.append(scores.masked_fill(future, float("-inf")).logsumexp(-1))
    return torch.cat(pieces, dim=-1)
