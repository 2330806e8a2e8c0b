"""Are the kernels for GPUs to be used on this GPU? At first use they are held against PyTorch's operations.

Legend: B batch, T time, H heads, K size of a head, R rows, V vocabulary.
"""

import os
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .attention import causal_attention_with_entropy

LEAST_CAPABILITY = (8, 0)  # an A100: before it, Triton does not reach the matrix units
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # times the largest value
_SHAPES = ((2, 70, 3, 4), (1, 129, 2, 8), (1, 33, 1, 16))  # B, T, H, K

logger = logging.get_logger(__name__)


@lru_cache
def gpu_kernels_work(index: int, dtype: torch.dtype) -> bool:
    """True if Triton builds the kernels for this GPU and they compute what PyTorch does; if not, a warning says why.

    The environment variable MU_SOTA_KERNELS=0 goes without them.

    Args:
        index: of the CUDA device.
        dtype: float32, bfloat16 or float16.
    """
    if os.environ.get("MU_SOTA_KERNELS") == "0" or torch.cuda.get_device_capability(index) < LEAST_CAPABILITY:
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            wrong = difference(torch.device("cuda", index), dtype)
    except Exception as error:  # Triton's and CUDA's are many
        wrong = f"they do not run: {' '.join(str(error).split())[:200] or type(error).__name__}"
    if wrong:
        logger.warning(f"the kernels for GPUs are left out, so training takes longer: {wrong}")
    return not wrong


def difference(device: torch.device, dtype: torch.dtype) -> str:
    """By how much the kernels differ from PyTorch's operations; nothing where it is rounding alone."""
    from .triton_kernels import attention, attention_backward, cross_entropy_of_rows

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    pairs: list[tuple[str, Tensor, Tensor]] = []
    for batch, length, heads, size in _SHAPES:
        qkv, grad_output = random(batch, length, 3, heads, size), random(batch, length, heads, size)
        grad_entropy = random(batch, heads, length).float()
        output, entropy, log_sum = attention(qkv)
        grad = attention_backward(grad_output, grad_entropy, qkv, output, entropy, log_sum)
        exact = qkv.double().requires_grad_()
        query, key, value = exact.permute(2, 0, 3, 1, 4)
        mixed, expected_entropy = causal_attention_with_entropy(query, key, value, None)
        mixed = mixed.transpose(1, 2)
        (expected,) = torch.autograd.grad(
            (mixed * grad_output.double()).sum() + (expected_entropy * grad_entropy.double()).sum(), exact
        )
        pairs += [("attention", output, mixed), ("its entropy", entropy, expected_entropy)]
        pairs += [("its gradient", grad, expected)]
    logits, labels = random(5, 5000), torch.tensor([3, -100, 4999, 17, 0], device=device)
    exact = logits.double().requires_grad_()
    expected_loss = F.cross_entropy(exact, labels, reduction="sum")
    (expected,) = torch.autograd.grad(expected_loss, exact)
    loss, _ = cross_entropy_of_rows(logits, labels, gradient=True)
    pairs += [("the cross-entropy", loss, expected_loss), ("its gradient", logits, expected)]
    for name, found, right in pairs:
        error = float((found.double() - right).detach().abs().max() / right.detach().abs().max())
        if not error <= _TOLERANCE[dtype]:
            return f"in {str(dtype).removeprefix('torch.')}, {name} is off by {error:.2g} of the largest value"
    return ""
