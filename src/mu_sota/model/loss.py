"""Cross-entropy of a large vocabulary from chunks of tokens: the logits of a batch are never held at once.

Legend: R rows (tokens), D state, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import use_cross_entropy_kernel, use_kernel_for_rows_of_logits
from .kernels import cross_entropy_of_rows, fused_cross_entropy

IGNORE_INDEX = -100

_MULTIPLE = {"cuda": 64}  # of entries, which the matrix units want; so many that no entry has are added


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and number of right top-1 predictions of `softmax(hidden @ weight.T + bias)`.

    Each chunk's gradient is computed beside its loss, so the backward pass only scales what is already there. Under
    bfloat16 autocast the products are in bfloat16 and every sum in float32; under float16 all is float32, since most
    probabilities of a large vocabulary are below what float16 can hold.

    Args:
        hidden: [..., D]
        weight: [V, D]
        bias: [V] or None
        labels: [...] int64; rows with IGNORE_INDEX count for nothing.

    Returns:
        Σ -log p(label) in nats, a float32 scalar; and the count of right predictions, an int64 scalar.

    Raises:
        ValueError: there is not one label a row.
    """
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels have the shape {list(labels.shape)}, but must have {list(hidden.shape[:-1])}")
    return _ChunkedCrossEntropy.apply(hidden.flatten(0, -2), weight, bias, labels.flatten())


def _cross_entropy_of_rows(logits: Tensor, labels: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss and right predictions of logits [R, V], which are overwritten, and the gradient by them if wanted."""
    counted, target = (labels != IGNORE_INDEX)[:, None], labels[:, None].clamp(min=0)
    top, prediction = logits.max(-1, keepdim=True)
    at_label = logits.gather(-1, target)
    right = ((prediction == target) & counted).sum()
    weights = logits.sub_(top).exp_()
    normaliser = weights.sum(-1, keepdim=True)
    loss = ((normaliser.log() + top - at_label) * counted).sum()
    if gradient:
        weights.mul_(counted / normaliser).scatter_add_(-1, target, -counted.to(weights.dtype))
    return loss, right, weights


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        dtype = torch.bfloat16 if bf16 else torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)  # sums: float32, or float64 for float64 inputs
        training = any(ctx.needs_input_grad[:3])
        if use_cross_entropy_kernel(hidden):
            total, correct, *grads = fused_cross_entropy(hidden, weight, bias, labels, training)
            if training:
                ctx.save_for_backward(*grads)
            ctx.mark_non_differentiable(correct)
            return total, correct
        with torch.autocast(device, enabled=False):
            rows, table = hidden.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            if added := -len(weight) % _MULTIPLE.get(device, 1):
                offset = weight.new_zeros(len(weight), dtype=dtype) if offset is None else offset
                table, offset = F.pad(table, (0, 0, 0, added)), F.pad(offset, (0, added), value=float("-inf"))
            total = torch.zeros((), dtype=exact, device=hidden.device)
            correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
            if training:
                grad_hidden = torch.empty_like(hidden)
                grad_weight = torch.zeros_like(table, dtype=exact)
                grad_bias = None if bias is None else torch.zeros_like(table[:, 0], dtype=exact)
            by_kernel = use_kernel_for_rows_of_logits(rows)
            step = 128 if device == "cpu" else 2048  # a chunk of logits should stay in the CPU's cache
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                logits = F.linear(rows[part], table, offset)
                if by_kernel:
                    loss, right = cross_entropy_of_rows(logits, labels[part], training)
                    grad_logits = logits
                else:
                    loss, right, grad_logits = _cross_entropy_of_rows(logits.to(exact), labels[part], training)
                total += loss
                correct += right
                if training:
                    grad_logits = grad_logits.to(dtype)
                    grad_hidden[part] = grad_logits @ table
                    grad_weight += grad_logits.T @ rows[part]
                    if grad_bias is not None:
                        grad_bias += grad_logits.sum(0, dtype=exact)
        if training:
            grad_weight = grad_weight[: len(weight)].to(weight.dtype)
            ctx.save_for_backward(grad_hidden, grad_weight, None if grad_bias is None else grad_bias[: len(weight)])
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            grad_hidden * grad_total.to(grad_hidden.dtype),
            grad_weight * grad_total.to(grad_weight.dtype),
            None if grad_bias is None else grad_bias * grad_total.to(grad_bias.dtype),
            None,
        )
