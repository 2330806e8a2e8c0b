"""Kernel or PyTorch: every such decision is made here.

The kernels of `kernels.cpp` compute in float32 on a CPU, those of `triton_kernels.py` on a GPU. Some read the weights
of modules without calling them, so nothing may have changed how a module works: no hook, adapter or quantised weight.

Legend: B batch, T time, H heads or blocks, K size of a head, D state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from transformers import Cache

from .gpu import gpu_kernels_work
from .kernels import library

LARGEST_HEAD = 16  # largest head size that a kernel takes; above it PyTorch's attention is as fast
_ENOUGH_TOKENS = 16  # for the feed-forward kernel, which first transposes its weights
_LARGEST_DROPOUT = 0.999  # kept values are divided by 1 - p, in float32

_READABLE: set[type[nn.Module]] = {nn.Linear, nn.LayerNorm, nn.Dropout, nn.Embedding, nn.ModuleDict, nn.ModuleList}

AnyClass = TypeVar("AnyClass", bound=type[nn.Module])

_switched_off = False


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Within it, PyTorch's own operations do all the work, as on a machine without the kernels."""
    global _switched_off  # noqa: PLW0603
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


@torch.compiler.assume_constant_result
def _available() -> bool:
    return not _switched_off and library() is not None


def kernels_take(tensor: Tensor, head_size: int = LARGEST_HEAD) -> bool:
    """True for float32 on a CPU, not under autocast, with heads that are small enough, where there are kernels."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and head_size <= LARGEST_HEAD
        and not torch.is_autocast_enabled("cpu")
        and _available()
    )


@torch.compiler.assume_constant_result
def _work_on_gpu(index: int, dtype: torch.dtype) -> bool:
    return not _switched_off and gpu_kernels_work(index, dtype)


def gpu_kernels_take(tensor: Tensor, head_size: int = LARGEST_HEAD) -> bool:
    """True on a CUDA GPU for which there are kernels, with heads that are small enough."""
    return (
        tensor.device.type == "cuda"
        and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and head_size <= LARGEST_HEAD
        and _work_on_gpu(tensor.device.index or 0, tensor.dtype)
    )


def kernels_take_eagerly(tensor: Tensor, head_size: int = LARGEST_HEAD) -> bool:
    """As `kernels_take`, for kernels that are not registered as operators of PyTorch: not while a graph is traced."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and type(tensor) in (Tensor, nn.Parameter) and kernels_take(tensor, head_size)


def readable(module_class: AnyClass) -> AnyClass:
    """Class decorator: a kernel may take the weights of such a module without calling it."""
    _READABLE.add(module_class)
    return module_class


def any_hook_on_all_modules() -> bool:
    """True if a hook was registered for every module of the process."""
    return bool(
        global_hooks._global_forward_pre_hooks
        or global_hooks._global_forward_hooks
        or global_hooks._global_backward_pre_hooks
        or global_hooks._global_backward_hooks
    )


def unchanged(*modules: nn.Module) -> bool:
    """True if calling these modules does what their classes say: nothing was hooked on, adapted or quantised."""
    return not any_hook_on_all_modules() and all(
        type(module) in _READABLE
        and getattr(module, "bias", True) is not None
        and all(type(weight) is nn.Parameter for weight in module._parameters.values())
        and "forward" not in module.__dict__  # which accelerate sets to move weights between devices
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        for module in modules
    )


def use_attention_kernel(heads: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    """True if a kernel computes attention of [B, T, 3, H, K] over exactly these T tokens."""
    whole, size = bias is None and key.shape[-2] == heads.shape[1], heads.shape[-1]
    return whole and (kernels_take(heads, size) or gpu_kernels_take(heads, size))


def use_turning_attention_kernel(heads: Tensor, bias: Tensor | None, cache: Cache | None) -> bool:
    """True if that kernel turns queries and keys, too: the one for CPUs, if the turned keys are not to be cached."""
    return bias is None and cache is None and kernels_take(heads, heads.shape[-1])


def use_block_attention_kernel(
    blocks: Tensor, bias: Tensor | None, cache: Cache | None, qkv: nn.Module, out: nn.Module
) -> bool:
    """True if the kernel computes attention of blocks [B, T, H, K], projections included; it fills no cache."""
    return bias is None and cache is None and kernels_take(blocks, blocks.shape[-1]) and unchanged(qkv, out)


def use_feed_forward_kernel(state: Tensor, up: nn.Linear, dropout: nn.Dropout, down: nn.Linear) -> bool:
    """True if the kernel computes the feed-forward network of [B, T, D]."""
    return (
        state.shape[:-1].numel() >= _ENOUGH_TOKENS
        and up.out_features % 16 == 0
        and dropout.p < _LARGEST_DROPOUT
        and kernels_take(state)
        and unchanged(up, dropout, down)
    )


def use_cross_entropy_kernel(hidden: Tensor) -> bool:
    """True if the kernel computes the loss and its gradients from hidden states [rows, D]."""
    return hidden.shape[-1] % 16 == 0 and kernels_take_eagerly(hidden)


def use_kernel_for_rows_of_logits(hidden: Tensor) -> bool:
    """True if the kernel for GPUs computes the loss of rows of logits, which come from hidden states of this kind."""
    return gpu_kernels_take(hidden)


def use_one_product_for_all_blocks(blocks: Tensor) -> bool:
    """True where one product with a block-diagonal matrix is faster than 16 small ones: 16 times the arithmetic.

    Args:
        blocks: [B, T, N, S].
    """
    return blocks.device.type == "cuda" and blocks.shape[-1] <= LARGEST_HEAD


def use_linear_kernel(hidden: Tensor, head: nn.Linear) -> bool:
    """True if the kernel computes the logits of one state [1, 1, D], without gradients."""
    return (
        hidden.shape[:2] == (1, 1)
        and not torch.is_grad_enabled()
        and unchanged(head)
        and kernels_take_eagerly(hidden)
        and kernels_take_eagerly(head.weight)
        and head.weight.shape[1] == hidden.shape[-1]
    )


def use_decoding_kernel(ids: Tensor, position_ids: Tensor | None, table: Tensor, largest_head: int) -> bool:
    """True if the kernel can take one new token of each text through the model, without gradients; see `decoding.py`.

    Args:
        ids: [B, T].
        position_ids: [B, T] or None.
        table: the embedding's weight.
        largest_head: values of the largest head.
    """
    integers = all(one is None or not one.is_floating_point() for one in (ids, position_ids))
    return (
        ids.shape[1] == 1
        and len(ids) > 0
        and integers
        and ids.device == table.device
        and not torch.is_grad_enabled()
        and kernels_take_eagerly(table, largest_head)
    )
