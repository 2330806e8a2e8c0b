"""Build."""

import copy
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, set_seed

from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM

from .configurations import SHRUNK_LAYERS, reason_of
from .random_state import random_state_kept

MANY_LAYERS = 1000
"""With more, the memory of a model is estimated from a few of its layers: to build them all takes long in any case."""


def require_memory_for_layers(
    make: Callable[[dict[str, Any]], PreTrainedConfig],
    overrides: dict[str, Any],
    trust_remote_code: bool,
    dtype: torch.dtype,
    description: str,
) -> None:
    """Refuse too many layers before anything is made that has an entry for each."""
    for key, layers in overrides.items():
        if "layer" not in key or not isinstance(layers, int) or layers <= MANY_LAYERS:
            continue
        one, two = (
            count_parameters(make(overrides | {key: few * SHRUNK_LAYERS}), trust_remote_code, dtype, description)
            for few in (1, 2)
        )
        require_memory(one + (two - one) // SHRUNK_LAYERS * (layers - SHRUNK_LAYERS), dtype, description)


def count_parameters(config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype, description: str) -> int:
    """How many there are, and entries of buffers, without making them."""
    try:
        with torch.device("meta"):
            model = make_model(config, trust_remote_code, dtype)
    except InputError as error:
        if "overflow" in str(error).lower():
            raise InputError(f"{description} would take more than {2**33:,} GiB; check it smaller") from error
        raise
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def require_memory(count: int, dtype: torch.dtype, description: str) -> None:
    need, free = count * dtype.itemsize, psutil.virtual_memory().available
    if need > 0.6 * free:
        raise InputError(
            f"{description} has {count:,} parameters, {need / 2**30:,.0f} GiB, but only {free / 2**30:.0f} GiB of "
            f"memory are free; check it smaller, as with --set num_hidden_layers=2 --set hidden_size=64"
        )


def make_model(config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype) -> nn.Module:
    with random_state_kept():
        set_seed(0)
        config = copy.deepcopy(config)  # a model notes its choices in it
        try:
            if isinstance(config, MuConfig):
                return nn.Module.to(MuForCausalLM(config), dtype)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
            return able(model, dtype)
        except Exception as error:
            raise InputError(
                f"no causal model can be made from a {type(config).__name__}: {reason_of(error)}"
            ) from error


def able(model: Any, dtype: torch.dtype) -> nn.Module:
    """The library's grouped product of experts has no float64."""
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model
