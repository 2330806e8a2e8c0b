"""The model's inner loops for GPUs, in Triton: attention with many small heads, and the rows of a cross-entropy.

What `kernels.cpp` is for a CPU; `backend.py` decides when they take over. The file is imported only there: where there
is no GPU, there is no Triton either.

Legend: B batch, T time, H heads or blocks, K size of a head, R rows, V vocabulary.
"""

import math

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is missing, in which the kernels for GPUs are written: pip install triton") from error

_INNER = 16  # a tile of queries or keys is so wide, the least that a matrix unit takes; further values of it are zero
_ROWS, _KEYS = 64, 64  # queries and keys of a tile of scores
_WARPS = 4
_COLUMNS = 4096  # of the logits of a row that are looked at together
_MASKED = tl.constexpr(-1e20)  # finite, and so are gradients times it: 0 times them is 0
_LOG2_E = math.log2(math.e)
_LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _tile(start, rows, length, stride, size: tl.constexpr, inner: tl.constexpr):
    """Rows [rows, inner] of queries, keys, values or gradients [T, K]; zeros beyond T and K."""
    values = tl.arange(0, inner)
    inside = (rows < length)[:, None] & (values < size)[None, :]
    return tl.load(start + rows[:, None].to(tl.int64) * stride + values[None, :], mask=inside, other=0.0)


@triton.jit
def _store_tile(tile, start, rows, length, stride, size: tl.constexpr, inner: tl.constexpr):
    values = tl.arange(0, inner)
    inside = (rows < length)[:, None] & (values < size)[None, :]
    place = start + rows[:, None].to(tl.int64) * stride + values[None, :]
    tl.store(place, tile.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _beginnings(length, heads, size: tl.constexpr):
    """Where this program's head begins in queries, keys and values [B, T, 3, H, K], and in outputs [B, T, H, K]."""
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token = batch.to(tl.int64) * length * heads * size
    return 3 * token + head * size, token + head * size


@triton.jit
def _scores(query, key, rows, keys, scale):
    """Scores [rows, keys] to the base 2, so that exp2(scores) are the weights; masked where a key is not seen."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    return tl.where(keys[None, :] <= rows[:, None], scores, _MASKED)


@triton.jit
def _attention_forward(
    qkv,
    output,
    log_sums,
    entropies,
    length,
    heads,
    scale,
    size: tl.constexpr,
    inner: tl.constexpr,
    row_tile: tl.constexpr,
    key_tile: tl.constexpr,
):
    """One tile of queries of one head: the online softmax of FlashAttention-2 (Dao 2023, algorithm 1), and its entropy.

    With t the scores to the base 2, m their maximum and w = exp2(t - m), the sums of w and of w (t - m) give the
    entropy log2(Σ w) - Σ w (t - m) / Σ w, in bits.
    """
    first_row = (tl.num_programs(1) - 1 - tl.program_id(1)) * row_tile  # the longest rows first
    rows = first_row + tl.arange(0, row_tile)
    stride = 3 * heads * size
    inside, out_inside = _beginnings(length, heads, size)
    start = qkv + inside
    query = _tile(start, rows, length, stride, size, inner)

    most = tl.full([row_tile], _MASKED, tl.float32)
    weights = tl.zeros([row_tile], tl.float32)
    weighted_scores = tl.zeros([row_tile], tl.float32)
    mixed = tl.zeros([row_tile, inner], tl.float32)
    for first_key in range(0, first_row + row_tile, key_tile):
        keys = first_key + tl.arange(0, key_tile)
        key = _tile(start + heads * size, keys, length, stride, size, inner)
        value = _tile(start + 2 * heads * size, keys, length, stride, size, inner)
        scores = _scores(query, key, rows, keys, scale)
        new_most = tl.maximum(most, tl.max(scores, 1))
        fade = tl.exp2(most - new_most)
        relative = scores - new_most[:, None]
        weight = tl.exp2(relative)
        weighted_scores = fade * (weighted_scores + weights * (most - new_most)) + tl.sum(weight * relative, 1)
        weights = fade * weights + tl.sum(weight, 1)
        mixed = fade[:, None] * mixed + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        most = new_most

    _store_tile(mixed / weights[:, None], output + out_inside, rows, length, heads * size, size, inner)
    row = tl.program_id(0).to(tl.int64) * length + rows
    tl.store(log_sums + row, most + tl.log2(weights), mask=rows < length)
    entropy = _LN_2 * (tl.log2(weights) - weighted_scores / weights)
    tl.store(entropies + row, entropy, mask=rows < length)


@triton.jit
def _grad_scores(scores, log_sum, grad_weights, constant, grad_entropy):
    """Weights p, and the gradient by the scores s = q k / sqrt(K).

    For the output o = Σ p v it is p (do v - do o); for the entropy H it is -p (log p + H). `constant` is the sum of
    what does not depend on the key, do o + dH H.
    """
    log_weights = scores - log_sum[:, None]
    weights = tl.exp2(log_weights)
    return weights, weights * (grad_weights - constant[:, None] - grad_entropy[:, None] * _LN_2 * log_weights)


@triton.jit
def _attention_backward_queries(
    grad_output,
    grad_entropies,
    qkv,
    output,
    entropies,
    log_sums,
    constants,
    grad,
    length,
    heads,
    scale,
    root,
    size: tl.constexpr,
    inner: tl.constexpr,
    row_tile: tl.constexpr,
    key_tile: tl.constexpr,
):
    """The gradient of one tile of queries; and what `_grad_scores` calls `constant`, for the other kernel."""
    first_row = (tl.num_programs(1) - 1 - tl.program_id(1)) * row_tile
    rows = first_row + tl.arange(0, row_tile)
    stride, out_stride = 3 * heads * size, heads * size
    inside, out_inside = _beginnings(length, heads, size)
    start = qkv + inside
    query = _tile(start, rows, length, stride, size, inner)
    by_output = _tile(grad_output + out_inside, rows, length, out_stride, size, inner)
    mixed = _tile(output + out_inside, rows, length, out_stride, size, inner)
    row = tl.program_id(0).to(tl.int64) * length + rows
    log_sum = tl.load(log_sums + row, mask=rows < length, other=0.0)
    by_entropy = tl.load(grad_entropies + row, mask=rows < length, other=0.0).to(tl.float32)
    entropy = tl.load(entropies + row, mask=rows < length, other=0.0)
    constant = tl.sum(by_output.to(tl.float32) * mixed.to(tl.float32), 1) + by_entropy * entropy
    tl.store(constants + row, constant, mask=rows < length)

    by_query = tl.zeros([row_tile, inner], tl.float32)
    for first_key in range(0, first_row + row_tile, key_tile):
        keys = first_key + tl.arange(0, key_tile)
        key = _tile(start + heads * size, keys, length, stride, size, inner)
        value = _tile(start + 2 * heads * size, keys, length, stride, size, inner)
        scores = _scores(query, key, rows, keys, scale)
        by_weights = tl.dot(by_output, tl.trans(value), input_precision="ieee")
        _, by_scores = _grad_scores(scores, log_sum, by_weights, constant, by_entropy)
        by_query += tl.dot(by_scores.to(key.dtype), key, input_precision="ieee")
    _store_tile(root * by_query, grad + inside, rows, length, stride, size, inner)


@triton.jit
def _attention_backward_keys(
    grad_output,
    grad_entropies,
    qkv,
    log_sums,
    constants,
    grad,
    length,
    heads,
    scale,
    root,
    size: tl.constexpr,
    inner: tl.constexpr,
    row_tile: tl.constexpr,
    key_tile: tl.constexpr,
):
    """The gradients of one tile of keys and values, from the queries that see them."""
    first_key = tl.program_id(1) * key_tile
    keys = first_key + tl.arange(0, key_tile)
    stride, out_stride = 3 * heads * size, heads * size
    inside, out_inside = _beginnings(length, heads, size)
    start = qkv + inside
    key = _tile(start + heads * size, keys, length, stride, size, inner)
    value = _tile(start + 2 * heads * size, keys, length, stride, size, inner)

    by_key = tl.zeros([key_tile, inner], tl.float32)
    by_value = tl.zeros([key_tile, inner], tl.float32)
    for first_row in range(first_key // row_tile * row_tile, length, row_tile):
        rows = first_row + tl.arange(0, row_tile)
        query = _tile(start, rows, length, stride, size, inner)
        by_output = _tile(grad_output + out_inside, rows, length, out_stride, size, inner)
        row = tl.program_id(0).to(tl.int64) * length + rows
        log_sum = tl.load(log_sums + row, mask=rows < length, other=0.0)
        by_entropy = tl.load(grad_entropies + row, mask=rows < length, other=0.0).to(tl.float32)
        constant = tl.load(constants + row, mask=rows < length, other=0.0)
        scores = _scores(query, key, rows, keys, scale)
        by_weights = tl.dot(by_output, tl.trans(value), input_precision="ieee")
        weights, by_scores = _grad_scores(scores, log_sum, by_weights, constant, by_entropy)
        by_value += tl.dot(tl.trans(weights.to(by_output.dtype)), by_output, input_precision="ieee")
        by_key += tl.dot(tl.trans(by_scores.to(query.dtype)), query, input_precision="ieee")
    _store_tile(root * by_key, grad + inside + heads * size, keys, length, stride, size, inner)
    _store_tile(by_value, grad + inside + 2 * heads * size, keys, length, stride, size, inner)


def attention(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.fused_attention`, for float32, bfloat16 or float16 on a GPU; entropies and log2-sums in float32."""
    batch, length, _, heads, size = qkv.shape
    qkv = qkv.contiguous()
    output = qkv.new_empty(batch, length, heads, size)
    entropy, log_sum = (qkv.new_empty(batch, heads, length, dtype=torch.float32) for _ in range(2))
    if qkv.numel():
        grid = (batch * heads, triton.cdiv(length, _ROWS))
        with torch.cuda.device_of(qkv):  # Triton launches on the current device, whatever device a tensor is on
            _attention_forward[grid](qkv, output, log_sum, entropy, length, heads, _LOG2_E * size**-0.5, **_tiles(size))
    return output, entropy, log_sum


def attention_backward(
    grad_output: Tensor, grad_entropy: Tensor, qkv: Tensor, output: Tensor, entropy: Tensor, log_sum: Tensor
) -> Tensor:
    """The gradient of `attention` by its input [B, T, 3, H, K]."""
    batch, length, _, heads, size = qkv.shape
    tensors = (grad_output, grad_entropy, qkv, output, entropy, log_sum)
    grad_output, grad_entropy, qkv, output, entropy, log_sum = (tensor.contiguous() for tensor in tensors)
    grad, constant = torch.empty_like(qkv), torch.empty_like(log_sum)
    if qkv.numel():
        root = size**-0.5
        numbers = (length, heads, _LOG2_E * root, root)
        tiles = _tiles(size)
        with torch.cuda.device_of(qkv):
            _attention_backward_queries[batch * heads, triton.cdiv(length, _ROWS)](
                grad_output, grad_entropy, qkv, output, entropy, log_sum, constant, grad, *numbers, **tiles
            )
            _attention_backward_keys[batch * heads, triton.cdiv(length, _KEYS)](
                grad_output, grad_entropy, qkv, log_sum, constant, grad, *numbers, **tiles
            )
    return grad


def _tiles(size: int) -> dict[str, int]:
    return {"size": size, "inner": _INNER, "row_tile": _ROWS, "key_tile": _KEYS, "num_warps": _WARPS}


@triton.jit
def _cross_entropy_rows(logits, labels, losses, right, vocabulary, gradient: tl.constexpr, at_once: tl.constexpr):
    """Cross-entropy of one row of logits, which its gradient replaces."""
    row = tl.program_id(0)
    label = tl.load(labels + row)
    start = logits + row.to(tl.int64) * vocabulary
    counted = label >= 0
    # Not a number where the label is no entry of the vocabulary.
    at_label = tl.load(start + label, mask=counted & (label < vocabulary), other=float("nan")).to(tl.float32)
    most, weights, best = float("-inf"), 0.0, -1
    for first in range(0, vocabulary, at_once):
        columns = first + tl.arange(0, at_once)
        values = tl.load(start + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
        top, place = tl.max(values, 0), tl.argmax(values, 0)
        best = tl.where(top > most, first + place, best)
        new_most = tl.maximum(most, top)
        weights = weights * tl.exp(most - new_most) + tl.sum(tl.exp(values - new_most), 0)
        most = new_most
    loss = most + tl.log(weights) - at_label
    tl.store(losses + row, tl.where(counted, loss, 0.0))
    tl.store(right + row, ((best == label) & counted).to(tl.int64))
    if gradient:
        share = tl.where(counted, 1.0 / weights, 0.0)
        for first in range(0, vocabulary, at_once):
            columns = first + tl.arange(0, at_once)
            inside = columns < vocabulary
            values = tl.load(start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            grad = share * tl.exp(values - most) - tl.where((columns == label) & counted, 1.0, 0.0)
            tl.store(start + columns, grad.to(logits.dtype.element_ty), mask=inside)


def cross_entropy_of_rows(logits: Tensor, labels: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """As `kernels.cross_entropy_of_rows`."""
    rows, vocabulary = logits.shape
    labels = labels.contiguous()
    losses = logits.new_empty(rows, dtype=torch.float32)
    right = torch.empty_like(labels)
    if rows:
        with torch.cuda.device_of(logits):
            _cross_entropy_rows[rows,](
                logits, labels, losses, right, vocabulary, gradient=gradient, at_once=_COLUMNS, num_warps=8
            )
    return losses.sum(), right.sum()
