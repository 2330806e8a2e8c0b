"""The cost of a model, computed without training it: parameters part by part, FLOPs per token, saved activations."""

from collections import Counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from mu_sota.model.backend import plain_pytorch
from mu_sota.model.modeling import MuForCausalLM

# PyTorch's counter knows the fused attention of GPUs, not the CPU's.
_FUSED_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, out_shape=None, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, out_shape=None, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}


def parameter_table(model: MuForCausalLM) -> dict[str, int]:
    """Number of parameters of each part, all layers together."""
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        if "layers" in pieces:
            part = pieces[pieces.index("layers") + 2]
            parts[f"layers: {part.replace('_', ' ')}"] += parameter.numel()
        elif "lookups" in pieces:
            parts[f"lookups: {pieces[pieces.index('lookups') + 1]}"] += parameter.numel()
        elif "sources" in pieces:
            parts[f"sources: block {pieces[-2]}"] += parameter.numel()
        else:
            parts[pieces[-2].replace("_", " ")] += parameter.numel()
    return dict(parts)


def flops_per_token(model: PreTrainedModel, length: int) -> tuple[int, int]:
    """Floating-point operations per token of a forward pass, and of forward and backward, as PyTorch counts them.

    Counted while one sequence runs on the CPU, in PyTorch's own operations. A multiplication and an addition count as
    two; look-ups, norms and activations are not counted. Attention counts the full square of positions, as is the
    convention.

    Args:
        model: on the CPU.
        length: of the sequence, since attention grows with it.
    """
    ids = torch.zeros(1, length, dtype=torch.long)
    with plain_pytorch(), FlopCounterMode(display=False, custom_mapping=_FUSED_ATTENTION) as forward:
        logits = model.eval()(ids).logits
    with FlopCounterMode(display=False, custom_mapping=_FUSED_ATTENTION) as backward:
        logits.sum().backward()
    model.zero_grad()
    return forward.get_total_flops() // length, (forward.get_total_flops() + backward.get_total_flops()) // length


def activation_bytes(model: MuForCausalLM, length: int) -> int:
    """Bytes of the activations that a training step on the CPU saves for its backward pass, but those of the loss.

    Args:
        model: on the CPU.
        length: tokens of the one sequence.
    """
    saved: dict[int, tuple[int, torch.Tensor]] = {}  # holds the tensors, so that no address is used twice
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.train().model(torch.zeros(1, length, dtype=torch.long))
    del output
    return sum(size for size, _ in saved.values())
