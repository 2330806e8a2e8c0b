"""One new token of cached texts in a single kernel call for the whole model.

Legend: B batch, N = 16 blocks, H heads, D state.
"""

import math
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from .backend import any_hook_on_all_modules, unchanged, use_decoding_kernel
from .blocks import NUM_BLOCKS
from .cache import ATTENTIONS, GrowingLayer
from .configuration import SENSITIVITY_HIDDEN
from .kernels import PastTables, decode_step, require_float32, weight_names
from .layers import MuLayer
from .sources import DECAYS, SOURCE_BLOCKS, SOURCE_NUMBERS


class DecodingWeights:
    """The weights of a model in the order of the kernel, gathered once and again when a user has changed the model.

    Checking every module of 24 layers for every token would take as long as the kernel. So three cheap signs of a
    change are compared: PyTorch's counter of hooks; which objects all modules and weights are, for adapters, quantised
    layers and new weights; and the number of attributes of each module, for a patched method.
    """

    def __init__(self, model: Any) -> None:
        self.hooks_made = RemovableHandle.next_id
        _, *modules = model.modules()
        self.first_changed = next((module for module in modules if not unchanged(module)), None)
        self.dropouts = [module for module in modules if type(module) is nn.Dropout]
        self.attributes = [vars(module) for module in model.modules()]
        self.holders = [(of, name) for of in self.attributes for name in ("_parameters", "_modules") if of[name]]
        self.objects, self.counts = self._look()
        self.arguments: list[Tensor | None] = []  # those of the kernel's structs
        self.tables: list[Tensor] = []
        self.weights: list[Tensor] = []  # all of them
        self.cache_layers: list[int] = []
        if self.first_changed is None:
            self.tables = [table.weight for table in (*_lookups(model), *_sources(model))]
            self.arguments = _weights(model, "ModelWeights")
            self.arguments += chain.from_iterable(_weights(layer, "LayerWeights") for layer in model.layers)
            self.weights = [each for each in (*self.arguments, *self.tables) if each is not None]
            indices = attrgetter("block_attention.cache_layer", "cross_attention.cache_layer")
            self.cache_layers = [*chain.from_iterable(map(indices, model.layers))]
            self.fits = self._fits(model)
        self.sizes = [*map(Tensor.numel, self.weights)]

    def _fits(self, model: Any) -> bool:
        """True if all weights of the model have the shapes that the kernel derives from the configuration."""
        config: Any = model.config
        with torch.device("meta"):
            layer = MuLayer(config, 0)
        shapes = [None if weight is None else weight.shape for weight in self.arguments]
        widths = [None if shape is None else shape[-1] for shape in shapes]
        own = len(weight_names("ModelWeights"))
        size, width = config.hidden_size, len(model.layers) * NUM_BLOCKS
        places = size if config.position_encoding == "learned" else None
        of_layer = [None if weight is None else weight.shape for weight in _weights(layer, "LayerWeights")]
        return (
            shapes[own:] == of_layer * len(model.layers)
            and widths[:own] == [size, places, width, size, size]
            and all(table.weight.shape[-1] == size for table in _lookups(model))
            and all(table.weight.shape[-1] == config.block_size for table in _sources(model))
            and len(_sources(model)) in (0, len(SOURCE_BLOCKS))
            and len({len(table.weight) for table in _by_token(model)}) <= 1
            and config.intermediate_size % 16 == 0
            and {type(weight) for weight in self.weights} == {nn.Parameter}
            and {id(weight) for weight in self.weights} == {id(weight) for weight in model.parameters()}
        )

    def _look(self) -> tuple[list[Any], list[int]]:
        """All weights and modules as objects, and how many attributes each module has (a patched method is one)."""
        contents = [attributes[name].values() for attributes, name in self.holders]
        return [*chain.from_iterable(contents)], [*map(len, self.attributes)]

    def are_current(self) -> bool:
        """True if the model is as it was when its weights were gathered; their values may have changed."""
        if self.first_changed is not None:  # nothing to gather before a user has taken that change back
            return not unchanged(self.first_changed)
        if self.hooks_made != RemovableHandle.next_id:  # it counts all hooks that were ever set
            return False
        objects, counts = self._look()
        same = len(objects) == len(self.objects) and all(map(is_, objects, self.objects))
        return same and counts == self.counts and [*map(Tensor.numel, self.weights)] == self.sizes

    def for_kernel(self) -> tuple[list[Tensor | None], list[Tensor]] | None:
        """The weights and tables, contiguous; None if the kernel would not compute the same as the modules.

        Raises:
            TypeError: some weights are of another dtype, or on another device.
        """
        if self.first_changed is not None or not self.fits or any_hook_on_all_modules():
            return None
        if any(module.training and module.p for module in self.dropouts):
            return None
        require_float32(self.weights)
        if all(map(Tensor.is_contiguous, self.weights)):
            return self.arguments, self.tables
        arguments = [None if weight is None else weight.contiguous() for weight in self.arguments]
        return arguments, [*map(Tensor.contiguous, self.tables)]


def _lookups(model: Any) -> list[Any]:
    return [] if model.lookups is None else list(model.lookups.tables)


def _sources(model: Any) -> list[Any]:
    return [] if model.sources is None else list(model.sources.tables.values())


def _by_token(model: Any) -> list[Any]:
    """The tables that have a row for each token."""
    return [*([] if model.lookups is None else model.lookups.induction), *_sources(model)[1:]]


def _weights(module: Any, struct: str) -> list[Tensor | None]:
    """The weights of a struct of the kernel; None where the module's form has no such part."""
    parts = (name.rpartition(".") for name in weight_names(struct))
    owners = [(attrgetter(owner)(module) if owner else module, name) for owner, _, name in parts]
    return [None if owner is None else getattr(owner, name) for owner, name in owners]


def decode(model: Any, input_ids: Tensor, position_ids: Tensor | None, cache: Cache | None, past: int) -> Tensor | None:
    """Final states [B, 1, D] of one new token of each cached text; None if the kernel cannot take it.

    Args:
        model: a `MuModel`.
        input_ids: [B, 1].
        position_ids: [B, 1], or None for the position after the cached ones.
        cache: whose layers are filled.
        past: cached tokens.
    """
    config: Any = model.config
    table = model.token_embedding.weight
    heads, size = config.num_attention_heads, config.hidden_size
    if cache is None or model.training or set(map(type, cache.layers)) != {GrowingLayer}:
        return None
    if not use_decoding_kernel(input_ids, position_ids, table, size // min(NUM_BLOCKS, heads)):
        return None
    if model.decoding_weights is None or not model.decoding_weights.are_current():
        model.decoding_weights = DecodingWeights(model)
    gathered = model.decoding_weights.for_kernel()
    if gathered is None:
        return None
    weights, tables = gathered
    batch, ids = len(input_ids), input_ids.flatten().tolist()
    positions = [past] * batch if position_ids is None else position_ids.expand(batch, 1).flatten().tolist()
    tokens, places, affinities = (math.inf if weight is None else len(weight) for weight in weights[:3])
    if model.sources is not None:
        places = min(places, len(_sources(model)[0].weight))
    if min(*ids, *positions) < 0 or max(ids) >= min(tokens, affinities) or max(positions) >= places:
        return None  # PyTorch refuses them with an IndexError
    shapes = [(batch, count, 1, size // count) for count in (NUM_BLOCKS, heads)]
    layers: list[Any] = [cache.layers[index] for index in model.decoding_weights.cache_layers]
    if not all(layer.takes(shapes[at % ATTENTIONS], table, past) for at, layer in enumerate(layers)):
        return None
    looked_up = None
    if model.reads_past:
        texts: Any = cache.layers[ATTENTIONS * len(model.layers)]
        if not texts.takes((batch, 1, 1, 1), input_ids, past):
            return None
        inductions = 0 if model.lookups is None else len(model.lookups.induction)
        sources = [] if model.sources is None else SOURCE_NUMBERS
        looked_up = PastTables(
            tables, texts.grow((batch, 1, 1, 1), input_ids), inductions, sources, list(DECAYS.values())
        )
    buffers = [layer.grow(shapes[at % ATTENTIONS], table) for at, layer in enumerate(layers)]
    widths = (config.intermediate_size, SENSITIVITY_HIDDEN)
    return decode_step(ids, positions, weights, buffers, looked_up, past + 1, widths, config.layer_norm_eps)
