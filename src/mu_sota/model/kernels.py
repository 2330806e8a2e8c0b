"""The model's inner loops for CPUs, compiled from `kernels.cpp` at first use: `kernel_library.py` says how.

Where there is no compiler, or for anything but float32 on a CPU, PyTorch's own operations compute the same:
`backend.py` decides. The kernels of a layer are operators of PyTorch, `torch.ops.mu_sota.*`, with their gradients.

Legend: B batch, T time, H heads or blocks, K size of a head, D state.
"""

import ctypes
import operator
import os
import re
import shutil
import subprocess
from array import array
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from .kernel_library import load

SOURCE = Path(__file__).with_name("kernels.cpp")

logger = logging.get_logger(__name__)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be made. The environment variable MU_SOTA_KERNELS=0 goes without."""
    if os.environ.get("MU_SOTA_KERNELS") == "0" or not SOURCE.exists():
        return None
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), "c++", "g++", "clang++"])), None)
    if compiler is None:
        logger.warning(
            "there is no C++ compiler, with which training on this CPU would be several times as fast: "
            "install g++ or clang++, or name one in the environment variable CXX"
        )
        return None
    try:
        return load(SOURCE, compiler)
    except subprocess.SubprocessError as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        logger.warning(
            f"{compiler} could not compile the CPU kernels, so training takes several times as long: {said or error}"
        )
    except OSError as error:
        logger.warning(f"the CPU kernels cannot be compiled, so training takes several times as long: {error}")
    return None


def _address(tensor: Tensor) -> int:
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.int64):
        raise TypeError(
            f"a kernel for float32 on the CPU got {tensor.dtype} on {tensor.device}: "
            f"all weights of a model must be of one kind, as after model.float()"
        )
    return tensor.data_ptr()


@lru_cache(maxsize=1)
def _parameters() -> dict[str, list[str]]:
    """The C types of every kernel's parameters, as the source declares them."""
    declared = re.findall(r"^void (mu_\w+)\(([^)]*)\)", SOURCE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [part.rpartition(" ")[0].strip() for part in parts.split(",")] for name, parts in declared}


def _call(name: str, *arguments: "Tensor | array[int] | array[float] | int | float | None") -> None:
    """Run a kernel: contiguous tensors and arrays go as pointers, each number as its parameter's type.

    The last parameter, the number of threads, is added here.

    Raises:
        OverflowError: a number does not fit its parameter.
    """
    pairs = zip((*arguments, torch.get_num_threads()), _parameters()[name], strict=True)
    converted = [_converted(argument, kind) for argument, kind in pairs]
    getattr(library(), name)(*converted)


def _converted(argument: Any, kind: str) -> Any:
    if kind.endswith("*"):
        if isinstance(argument, array):
            return ctypes.c_void_p(argument.buffer_info()[0])
        return ctypes.c_void_p(None if argument is None else _address(argument))
    if kind == "int64_t":
        if not -(2**63) <= (whole := operator.index(argument)) < 2**63:
            raise OverflowError(f"{argument} does not fit into the 64 bits of a kernel's integer")
        return ctypes.c_int64(whole)
    if not abs(number := float(argument)) <= torch.finfo(torch.float32).max:  # NaN neither
        raise OverflowError(f"{argument} does not fit into a kernel's float32")
    return ctypes.c_float(number)


def _by_text(turns: Tensor | None) -> Tensor | None:
    """[2, B or 1, T, 1, 1, K // 2] as the kernels read it."""
    return None if turns is None else turns.contiguous()


def _texts(turns: Tensor | None) -> int:
    """For how many texts there are turns: B, or 1 if they are the same for all."""
    return 1 if turns is None else turns.shape[1]


@torch.library.custom_op("mu_sota::attention", mutates_args=())
def fused_attention(qkv: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of [B, T, 3, H, K]: outputs [B, T, H, K], entropies [B, H, T] in nats, log2-sums [B, H, T].

    `turns` are those of `attention.rotary_turns` for K, by which queries and keys are turned first; on a CPU only.
    """
    batch, length, _, heads, size = qkv.shape
    output = qkv.new_empty(batch, length, heads, size)
    entropy, log_sum = (qkv.new_empty(batch, heads, length) for _ in range(2))
    tensors = (qkv.contiguous(), _by_text(turns), output, log_sum, entropy)
    _call("mu_attention", *tensors, batch, length, heads, size, _texts(turns))
    return output, entropy, log_sum


@fused_attention.register_fake
def _(qkv: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _, heads, size = qkv.shape
    row = (batch, heads, length)
    sums = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(batch, length, heads, size), qkv.new_empty(row, dtype=sums), qkv.new_empty(row, dtype=sums)


@torch.library.custom_op("mu_sota::attention_backward", mutates_args=())
def _attention_backward(
    grad_output: Tensor,
    grad_entropy: Tensor,
    qkv: Tensor,
    turns: Tensor | None,
    output: Tensor,
    entropy: Tensor,
    log_sum: Tensor,
) -> Tensor:
    grad = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    shape = (qkv.shape[0], qkv.shape[1], qkv.shape[3], qkv.shape[4])
    inputs = [tensor.contiguous() for tensor in (grad_output, grad_entropy, qkv)]
    outputs = [tensor.contiguous() for tensor in (output, log_sum, entropy)]
    _call("mu_attention_backward", *inputs, _by_text(turns), *outputs, grad, *shape, _texts(turns))
    return grad


@_attention_backward.register_fake
def _(grad_output: Tensor, grad_entropy: Tensor, qkv: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep_attention(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[2])


def _differentiate_attention(ctx: Any, grad_output: Tensor, grad_entropy: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return _attention_backward(grad_output, grad_entropy, *ctx.saved_tensors), None


@fused_attention.register_kernel("cuda")
def _(qkv: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_kernels import attention

    _refuse_turns(turns)
    return attention(qkv)


@_attention_backward.register_kernel("cuda")
def _(grad_output: Tensor, grad_entropy: Tensor, qkv: Tensor, _: None, *outputs: Tensor) -> Tensor:
    from .triton_kernels import attention_backward

    return attention_backward(grad_output, grad_entropy, qkv, *outputs)


def _refuse_turns(turns: Tensor | None) -> None:
    if turns is not None:
        raise ValueError("on a GPU, queries and keys are turned before the kernel: see attention.rotated")


fused_attention.register_autograd(_differentiate_attention, setup_context=_keep_attention)


@torch.library.custom_op("mu_sota::block_attention", mutates_args=())
def fused_block_attention(
    blocks: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    turns: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of every block [B, T, H, K] by itself, its own projections included, and the turns if any.

    Weights are [H, 3K, K] and [H, K, K], biases [H, 3K] and [H, K]. Returns [B, T, H, K], and what the gradient needs.
    """
    batch, length, heads, size = blocks.shape
    output = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    mixed = blocks.new_empty(batch, heads, size, length)
    log_sum = blocks.new_empty(batch, heads, length)
    tensors = [tensor.contiguous() for tensor in (blocks, qkv_weight, qkv_bias, out_weight, out_bias)]
    shape = (batch, length, heads, size)
    _call("mu_block_attention", *tensors, _by_text(turns), output, mixed, log_sum, *shape, _texts(turns))
    return output, mixed, log_sum


@fused_block_attention.register_fake
def _(blocks: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, size = blocks.shape
    output = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    return output, blocks.new_empty(batch, heads, size, length), blocks.new_empty(batch, heads, length)


@torch.library.custom_op("mu_sota::block_attention_backward", mutates_args=())
def _block_attention_backward(
    grad_output: Tensor,
    blocks: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    turns: Tensor | None,
    mixed: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, size = blocks.shape
    grad_blocks = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    by_sequence = [
        blocks.new_empty(batch, *weight.shape) for weight in (qkv_weight, qkv_bias, out_weight, out_weight[..., 0])
    ]
    tensors = [tensor.contiguous() for tensor in (grad_output, blocks, qkv_weight, qkv_bias, out_weight)]
    kept = (_by_text(turns), mixed.contiguous(), log_sum.contiguous())
    shape = (batch, length, heads, size)
    _call("mu_block_attention_backward", *tensors, *kept, grad_blocks, *by_sequence, *shape, _texts(turns))
    by_qkv_weight, by_qkv_bias, by_out_weight, by_out_bias = (grad.sum(0) for grad in by_sequence)
    return grad_blocks, by_qkv_weight, by_qkv_bias, by_out_weight, by_out_bias


@_block_attention_backward.register_fake
def _(
    grad_output: Tensor, blocks: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, out_weight: Tensor, *_: Tensor | None
) -> tuple[Tensor, ...]:
    weights = (qkv_weight, qkv_bias, out_weight, out_weight[..., 0])
    return tuple(tensor.new_empty(tensor.shape) for tensor in (blocks, *weights))


def _keep_block_attention(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], inputs[5], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_block_attention(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_block_attention_backward(grad_output, *ctx.saved_tensors), None


fused_block_attention.register_autograd(_differentiate_block_attention, setup_context=_keep_block_attention)


@torch.library.custom_op("mu_sota::feed_forward", mutates_args=())
def fused_feed_forward(
    state: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, dropout: float, seed: Tensor
) -> Tensor:
    """Linear, GELU, dropout, linear of [..., D]; weights are [F, D] and [D, F]. The seed says what is dropped."""
    width, size = up.shape
    output = torch.empty_like(state, memory_format=torch.contiguous_format)
    tensors = [tensor.contiguous() for tensor in (state, up.T, up_bias, down.T, down_bias)]
    rows = state.numel() // size
    _call("mu_feed_forward", *tensors, output, int(seed), rows, size, width, dropout)
    return output


@fused_feed_forward.register_fake
def _(state: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(state, memory_format=torch.contiguous_format)


@torch.library.custom_op("mu_sota::feed_forward_backward", mutates_args=())
def _feed_forward_backward(
    grad_output: Tensor, state: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    width, size = up.shape
    grad_state = torch.empty_like(state, memory_format=torch.contiguous_format)
    threads = torch.get_num_threads()
    by_thread = [state.new_zeros(threads, *tensor.shape) for tensor in (up, up_bias, down, down[:, 0])]
    tensors = [tensor.contiguous() for tensor in (grad_output, state, up, up.T, up_bias, down)]
    rows = state.numel() // size
    _call(
        "mu_feed_forward_backward",
        *tensors,
        grad_state,
        *by_thread,
        int(seed),
        rows,
        size,
        width,
        dropout,
    )
    by_up, by_up_bias, by_down, by_down_bias = (grad.sum(0) for grad in by_thread)
    return grad_state, by_up, by_up_bias, by_down, by_down_bias


@_feed_forward_backward.register_fake
def _(grad_output: Tensor, state: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (state, up, up_bias, down, down[:, 0]))


def _keep_feed_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4], inputs[6])
    ctx.dropout = inputs[5]


def _differentiate_feed_forward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    return *_feed_forward_backward(grad_output, *tensors, ctx.dropout, seed), None, None


fused_feed_forward.register_autograd(_differentiate_feed_forward, setup_context=_keep_feed_forward)


def linear_of_one(state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of a single state [1, 1, D], without gradients, to [1, 1, V]: as fast as its weight is read."""
    output = state.new_empty(1, 1, len(weight))
    _call("mu_linear", *(tensor.contiguous() for tensor in (state, weight, bias)), output, *weight.shape)
    return output


@lru_cache(maxsize=2)
def weight_names(struct: str) -> tuple[str, ...]:
    """The weights that a struct of `kernels.cpp` points to, in its order, as attributes: `feed_forward.up.weight`."""
    source = SOURCE.read_text(encoding="utf-8")
    (body,) = re.findall(rf"^struct {struct} \{{\n(.*?)^\}};", source, re.MULTILINE | re.DOTALL)
    return tuple(re.findall(r"// ([\w.]+)$", body, re.MULTILINE))


def require_float32(weights: list[Tensor]) -> None:
    """Refuse weights that a kernel would read as noise.

    Raises:
        TypeError: a weight is not float32 on the CPU.
    """
    if set(map(operator.attrgetter("dtype", "is_cpu"), weights)) != {(torch.float32, True)}:
        list(map(_address, weights))


class PastTables(NamedTuple):
    """What `decode_step` looks up by a token and its past.

    Attributes:
        tables: that of pairs if there is one; those of induction; and those of sources, by position and then by token.
            All those by token have the same number of rows.
        texts: the buffer [2, B, 1, capacity, 1] of cached ids, to which the new ones are written.
        inductions: the number of induction tables.
        sources: the numbers of the blocks that sources feed, in the order of their tables; or none.
        decays: as in `sources.py`, of the last two.
    """

    tables: list[Tensor]
    texts: Tensor | None
    inductions: int
    sources: list[int]
    decays: list[float]


def decode_step(
    ids: list[int],
    positions: list[int],
    weights: list[Tensor | None],
    buffers: list[Tensor],
    past: PastTables | None,
    length: int,
    widths: tuple[int, int],
    epsilon: float,
) -> Tensor:
    """The whole model for one new token of each of B texts, without gradients: to final states [B, 1, D].

    Args:
        ids, positions: [B], of the new tokens; in the tables.
        weights: those of `ModelWeights`, then those of `LayerWeights` for each layer, contiguous; None where a model
            has no such weight.
        buffers: of the cache layers, for each layer [2, B, N, capacity, S] and [2, B, H, capacity, K]. Keys and values
            of the new token are written to position `length` - 1.
        past: of a model that looks up what was read before.
        length: cached tokens and the new one.
        widths: inner widths of the feed-forward and of the sensitivity network.
        epsilon: of the norms.
    """
    embedding = weights[0]
    assert embedding is not None
    size, blocks, heads = embedding.shape[1], buffers[0].shape[2], buffers[1].shape[2]
    output = embedding.new_empty(len(ids), 1, size)
    tables, texts, inductions, sources, decays = past or PastTables([], None, 0, [], [])
    pairs = len(tables) > inductions + len(sources)
    _call(
        "mu_decode_step",
        *(array("q", ids), array("q", positions), output),
        *(_addresses(weights), _addresses(buffers), array("q", [buffer.shape[3] for buffer in buffers])),
        *(_addresses(tables), texts, 0 if texts is None else texts.shape[3]),
        *(len(tables[0]) if pairs else 0, inductions, len(tables[-1]) if tables else 0),
        *(
            array("q", sources) if sources else None,
            array("f", decays),
            length,
            len(buffers) // 2,
            len(ids),
            size,
            blocks,
            heads,
            *widths,
        ),
        epsilon,
    )
    return output


def _addresses(tensors: Iterable[Tensor | None]) -> "array[int]":
    return array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors])


@torch.library.custom_op("mu_sota::cross_entropy_of_rows", mutates_args=("logits",))
def cross_entropy_of_rows(logits: Tensor, labels: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats and number of right top-1 predictions of logits [R, V] on a GPU.

    Args:
        logits: contiguous; with `gradient`, the gradient of the sum by them takes their place.
        labels: [R] int64, negative where a row counts for nothing.
        gradient: is it wanted?

    Returns:
        A float32 and an int64 scalar; the loss is not finite if a label is not in the vocabulary.
    """
    from .triton_kernels import cross_entropy_of_rows as on_gpu

    return on_gpu(logits, labels, gradient)


@cross_entropy_of_rows.register_fake
def _(logits: Tensor, labels: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=torch.float32), labels.new_empty(())


def fused_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Cross-entropy of `softmax(hidden @ weight.T + bias)`, and its gradients, for `loss.chunked_cross_entropy`.

    Hidden states are [R, D], D a multiple of 16; labels are [R], negative where they count for nothing. Returns the
    summed loss, the number of right predictions, and, if asked for, the gradients by hidden, weight and bias.

    Raises:
        IndexError: a label is not in the vocabulary.
    """
    (rows, size), vocabulary = hidden.shape, len(weight)
    if rows and (largest := int(labels.max())) >= vocabulary:
        raise IndexError(f"label {largest} is not in a vocabulary of {vocabulary}")
    hidden, weight, labels = hidden.contiguous(), weight.float().contiguous(), labels.long().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    losses, right = hidden.new_empty(2, rows).unbind()
    by_hidden = hidden.new_empty(hidden.shape) if gradients else None
    by_weight = weight.new_empty(weight.shape) if gradients else None
    by_bias = bias.new_empty(bias.shape) if gradients and bias is not None else None
    inputs = (hidden, weight, bias, labels)
    _call("mu_cross_entropy", *inputs, losses, right, by_hidden, by_weight, by_bias, rows, size, vocabulary)
    return losses.sum(), right.sum().long(), by_hidden, by_weight, by_bias
