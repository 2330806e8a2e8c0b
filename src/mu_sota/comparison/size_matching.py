"""Sizes of baselines: the configuration that equals MU in parameters, in FLOPs, or in the time of a training step.

Parameters and FLOPs are counted on the real model, times are measured.
"""

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
from .questions import Matched
from .timing import StepTimer

TOLERANCE = 0.005
"""Largest relative difference in parameters or FLOPs."""
TIME_TOLERANCE = 0.03
"""Relative difference in time at which the search for a size ends; no machine repeats its timings much better."""

_WIDTHS = range(HEAD_SIZE, 4097, HEAD_SIZE)
_MAX_LAYERS = 48
_SEARCHES = 8  # sizes timed at most
_WIDTH_PER_LAYER = 32
"""A shape of this ratio is preferred; GPT-2 has 64 at 124 M parameters. Within wide bounds the ratio hardly matters at
a given number of parameters (Kaplan et al. 2020, figure 5)."""


class Parameters(NamedTuple):
    """Numbers of parameters of a model.

    Attributes:
        total: all of them; tied ones once.
        non_embedding: without token and position embeddings, all tables that are looked up, and the output projection.
        token_tables: of MU's affinity tables, one a layer, with a row for each token of the vocabulary.
    """

    total: int
    non_embedding: int
    token_tables: int

    def as_dict(self) -> dict[str, int]:
        """For records, where the names are older ones."""
        return dict(zip(("total", "outside", "tables"), self, strict=True))

    @classmethod
    def from_dict(cls, content: dict[str, int]) -> "Parameters":
        """The inverse of `as_dict`."""
        return cls(int(content["total"]), int(content["outside"]), int(content["tables"]))


def count_parameters(config: PreTrainedConfig) -> Parameters:
    """Count the parameters of a real model of this configuration, which is built without memory."""
    with torch.device("meta"):
        model = build(config, 0.0)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]  # all tables, too
    apart = {parameter for module in (*embeddings, model.get_output_embeddings()) for parameter in module.parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = model.model.affinity.weight.numel() if isinstance(model, MuForCausalLM) else 0
    return Parameters(total, total - sum(parameter.numel() for parameter in apart), tables)


def count_flops(config: PreTrainedConfig, length: int) -> int:
    """FLOPs per token of forward and backward on a sequence of `length` tokens, as `flops_per_token` counts them."""
    return flops_per_token(build(config, 0.0), length)[1]


def match_size(
    matched: Matched, family: Family, mu: MuConfig, length: int, timer: StepTimer
) -> tuple[PreTrainedConfig, float]:
    """The configuration of a family that equals MU in one quantity, and the time of its training step over MU's.

    Args:
        length: of the sequences for which FLOPs are counted.

    Raises:
        InputError: no shape comes near enough.
    """
    if matched == "time":
        return match_time(family, mu, timer)
    measures: dict[Matched, Callable[[PreTrainedConfig], int]] = {
        "params": lambda config: count_parameters(config).total,
        "trunk": lambda config: count_parameters(config).non_embedding,
        "flops": lambda config: count_flops(config, length),
    }
    config = fit(family, mu, measures[matched], measures[matched](mu))
    return config, timer.ratio(config, mu)


def fit(family: Family, like: MuConfig, measure: Callable[[PreTrainedConfig], int], target: int) -> PreTrainedConfig:
    """The configuration of a family whose `measure` is nearest to `target`, in the most usual shape.

    Args:
        like: gives vocabulary, positions and special tokens.
        measure: counts a configuration's parameters or FLOPs, which grow linearly with layers and inner width.

    Raises:
        InputError: no shape comes within `TOLERANCE`.
    """

    def count(layers: int, width: int, inner: int) -> int:
        return measure(family.config(Shape(layers, width, inner), like))

    found: list[tuple[float, Shape]] = []
    for width in _WIDTHS:
        one, two, wide = count(1, width, width), count(2, width, width), count(1, width, 2 * width)
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
        f"no size of {family.label} with heads of {HEAD_SIZE} values comes within {TOLERANCE:.1%} of {target:,} "
        f"parameters or FLOPs; compare a larger MU model (num_hidden_layers, matrix_size)"
    )


def match_time(family: Family, mu: MuConfig, timer: StepTimer) -> tuple[PreTrainedConfig, float]:
    """The configuration whose training step takes as long as MU's, and the time of its step over MU's.

    Times are noisy: sizes are tried along the family's usual shapes, each where a power law through the last two
    says, until one is as fast twice in a row. If none is, the nearest is timed again, since the best of several noisy
    timings flatters itself.
    """

    def non_embedding(config: PreTrainedConfig) -> int:
        return count_parameters(config).non_embedding

    tried: list[tuple[float, float, PreTrainedConfig]] = []  # log of size, and of time over MU's
    size = math.log(non_embedding(mu))
    for _ in range(_SEARCHES):
        config = fit(family, mu, non_embedding, round(math.exp(size)))
        ratio = timer.ratio(config, mu)
        if _is_same_time(ratio) and _is_same_time(ratio := timer.ratio(config, mu)):
            return config, ratio
        tried.append((size, math.log(ratio), config))
        growth = 0.7  # of time with size, in logarithms, before two points tell
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            growth = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0])
        # Noise can make the two points say anything; time grows with size, and hardly faster.
        size -= tried[-1][1] / min(max(growth, 0.3), 1.2)
    nearest = min(tried, key=lambda one: abs(one[1]))[2]
    return nearest, timer.ratio(nearest, mu)


def _is_same_time(ratio: float) -> bool:
    return abs(math.log(ratio)) <= TIME_TOLERANCE
