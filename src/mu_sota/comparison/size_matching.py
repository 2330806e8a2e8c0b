"""Sizes of baselines: the configuration whose parameters or FLOPs, counted on the real model, are those of MU."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from mu_sota.evaluation.cost import flops_per_token
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM

from .baselines import HEAD_SIZE, Family, Shape, build

TOLERANCE = 0.005
"""Largest relative difference in what is matched."""

_WIDTHS = range(HEAD_SIZE, 4097, HEAD_SIZE)
_MAX_LAYERS = 48
_WIDTH_PER_LAYER = 32
"""A shape of this ratio is preferred; GPT-2 has 64 at 124 M parameters. Within wide bounds the ratio hardly matters at
a given number of parameters (Kaplan et al. 2020, figure 5)."""


class Parameters(NamedTuple):
    """How many, and where.

    Attributes:
        total: all of them; tied ones once.
        outside: those that are in no embedding, table of tokens or output projection.
        tables: those in MU's tables of the tokens' affinity, one a layer.
    """

    total: int
    outside: int
    tables: int


def count_parameters(config: PreTrainedConfig) -> Parameters:
    """Of a model of this configuration, built without memory and counted."""
    with torch.device("meta"):
        model = build(config, 0.0)
    by_token = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    apart = {parameter for module in (*by_token, model.get_output_embeddings()) for parameter in module.parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = model.model.affinity.weight.numel() if isinstance(model, MuForCausalLM) else 0
    return Parameters(total, total - sum(parameter.numel() for parameter in apart), tables)


def count_flops(config: PreTrainedConfig, length: int) -> int:
    """FLOPs per token of forward and backward on a sequence of `length` tokens, as PyTorch counts them; see `sizes`."""
    return flops_per_token(build(config, 0.0), length)[1]


def fit(family: Family, like: MuConfig, measure: Callable[[PreTrainedConfig], int], target: int) -> PreTrainedConfig:
    """The configuration of a family whose `measure` is nearest to `target`, in the most usual shape.

    Args:
        like: gives vocabulary, positions and special tokens.
        measure: counts a configuration's parameters or FLOPs, which grow linearly with layers and inner width.

    Raises:
        InputError: no shape comes within `TOLERANCE`.
    """

    def at(layers: int, width: int, inner: int) -> int:
        return measure(family.config(Shape(layers, width, inner), like))

    found: list[tuple[float, Shape]] = []
    for width in _WIDTHS:
        one, two, wide = at(1, width, width), at(2, width, width), at(1, width, 2 * width)
        if one > target:
            break
        per_inner = (wide - one) / width
        for layers in range(1, _MAX_LAYERS + 1):
            spare = target - (one + (layers - 1) * (two - one))
            inner = width + spare / layers / per_inner
            if inner < width:
                break
            unusual = abs(math.log(inner / width / family.usual_inner))
            uneven = abs(math.log(width / layers / _WIDTH_PER_LAYER))
            found.append((unusual + uneven / 2, Shape(layers, width, round(inner))))
    for _, shape in sorted(found):
        for grain in (8, 1):  # matrix products like multiples of 8
            config = family.config(shape._replace(inner=grain * round(shape.inner / grain)), like)
            if abs(measure(config) / target - 1) <= TOLERANCE:
                return config
    raise InputError(
        f"no {family.label} model with heads of {HEAD_SIZE} values comes within {TOLERANCE:.1%} of {target:,} "
        f"parameters or FLOPs; compare a larger MU model (num_hidden_layers, matrix_size)"
    )
