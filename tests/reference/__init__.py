"""The slow, obvious implementation, and the small models that are held against it."""

from typing import Any

import torch
from torch import Tensor, nn

from mu_sota import MuConfig, MuForCausalLM

from .model import ReferenceMu, ReferenceOutput, copy_weights, to_reference

__all__ = [
    "NEW_FORM",
    "ReferenceMu",
    "ReferenceOutput",
    "copy_weights",
    "gradients_of",
    "lively_model",
    "reference_of",
    "small_config",
    "small_model",
    "to_reference",
]


NEW_FORM: dict[str, Any] = {
    "position_encoding": "rotary",
    "norm_placement": "before",
    "pair_table_rows": 29,
    "induction_tables": 2,
    "block_inputs": "by_name",
}
"""Every field of the form that is not the specified one."""


def small_config(**overrides: Any) -> MuConfig:
    """A model small enough for a test; no dropout and no token that ends generation."""
    small = {
        "vocab_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
        "dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return MuConfig(**{**small, **overrides})


def small_model(seed: int = 0, **overrides: Any) -> MuForCausalLM:
    """A small model as training starts from it, in eval mode."""
    torch.manual_seed(seed)
    return MuForCausalLM(small_config(**overrides)).eval()


def lively_model(seed: int = 0, **overrides: Any) -> MuForCausalLM:
    """A small model, in float64 and eval mode, none of whose parameters is near a special value.

    Attention is far from uniform, biases and LayerNorm weights are away from 0 and 1, every block has its own base: a
    term left out, or two that are mixed up, show.
    """
    model = small_model(seed, **overrides).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif name.endswith("base"):
                parameter.copy_(0.3 + 0.5 * torch.rand_like(parameter))
            elif name.endswith("bias") or parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.3)
            elif "embedding" in name or "affinity" in name:
                nn.init.normal_(parameter)
            else:
                nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return model


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter, by its name; each must have one."""
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad
    return gradients


def reference_of(model: MuForCausalLM) -> ReferenceMu:
    """The reference in a model's size and with its weights, in float64 and eval mode."""
    config = model.config
    reference = ReferenceMu(
        config.vocab_size,
        config.matrix_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
        config.max_position_embeddings,
        form=(config.position_encoding, config.norm_placement),
        pair_rows=config.pair_table_rows,
        induction=config.induction_tables,
        sources=config.block_inputs == "by_name",
    ).double()
    copy_weights(model, reference)
    return reference.eval()
