"""Models with random weights, built from a configuration if the memory suffices."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, set_seed

from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM

from .configurations import SHRUNK_LAYERS, layers_of, reason_of, replaced, shrunk
from .random_state import random_state_kept

MANY_LAYERS = 1000
"""With more, the memory of a model is estimated from a few of its layers: to build them all takes long in any case."""


class Builder(NamedTuple):
    """Builds models, always with the same random weights.

    Args:
        description: of the model, for messages.
        trust_remote_code: its own Python files may run.
        dtype: number format of the weights.
    """

    description: str
    trust_remote_code: bool
    dtype: torch.dtype

    def build(self, config: PreTrainedConfig) -> nn.Module:
        """Raises InputError if the model cannot be built, or needs more memory than is free."""
        layers = layers_of({}, config.get_text_config())
        self.require_memory_for_layers(partial(replaced, config), {"num_hidden_layers": layers})
        self._require_memory(self._count_entries(config))
        return _make(config, self.trust_remote_code, self.dtype)

    def require_memory_for_layers(
        self, configure: Callable[[dict[str, Any]], PreTrainedConfig], overrides: dict[str, Any]
    ) -> None:
        """Refuse too many layers before anything is made that has an entry for each.

        Args:
            configure: makes the configuration with some fields replaced.
            overrides: the fields; the number of layers is one of them.
        """
        for key, layers in overrides.items():
            if "layer" not in key or not isinstance(layers, int) or layers <= MANY_LAYERS:
                continue
            one, two = (self._count_entries(configure(overrides | {key: few * SHRUNK_LAYERS})) for few in (1, 2))
            self._require_memory(one + (two - one) // SHRUNK_LAYERS * (layers - SHRUNK_LAYERS))

    def _count_entries(self, config: PreTrainedConfig) -> int:
        """Entries of parameters and buffers, none of which are made."""
        try:
            with torch.device("meta"):
                model = _make(config, self.trust_remote_code, self.dtype)
        except InputError as error:
            if "overflow" in str(error).lower():
                raise InputError(f"{self.description} would take more than {2**33:,} GiB; check it smaller") from error
            raise
        return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))

    def _require_memory(self, count: int) -> None:
        need, free = count * self.dtype.itemsize, psutil.virtual_memory().available
        if need > 0.6 * free:
            raise InputError(
                f"{self.description} has {count:,} parameters, {need / 2**30:,.0f} GiB, but only {free / 2**30:.0f} "
                f"GiB of memory are free; check it smaller, as with --set num_hidden_layers=2 --set hidden_size=64"
            )


def rebuilder(config: PreTrainedConfig, trust_remote_code: bool) -> Callable[[], nn.Module]:
    """Makes the model anew with random weights: small, or as configured if its sizes depend on each other."""

    def rebuild() -> nn.Module:
        try:
            model = _make(shrunk(config), trust_remote_code, torch.float32)
            model(torch.zeros(1, 2, dtype=torch.long))
        except Exception:
            return _make(config, trust_remote_code, torch.float32)
        return model

    return rebuild


def _make(config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype) -> nn.Module:
    with random_state_kept():
        set_seed(0)
        config = copy.deepcopy(config)  # a model notes its choices in it
        try:
            if isinstance(config, MuConfig):
                return nn.Module.to(MuForCausalLM(config), dtype)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
            return with_usable_experts(model, dtype)
        except Exception as error:
            kind = type(config).__name__
            raise InputError(f"no causal model can be made from a {kind}: {reason_of(error)}") from error


def with_usable_experts(model: Any, dtype: torch.dtype) -> nn.Module:
    """The library's grouped product of experts has no float64."""
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model
