"""The MU model: block attention, cross-block attention, feed-forward, dynamic sensitivity, gated update.

Legend: B batch, T time, D state (block-major), N = 16 blocks, S values a block, H heads, V vocabulary, L layers.
"""

import difflib
import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import wraps
from itertools import chain
from operator import is_
from typing import Any, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple, logging
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import attention_bias, causal_attention, causal_attention_with_entropy
from .blocks import NUM_BLOCKS, join_blocks, split_blocks
from .configuration import SENSITIVITY_HIDDEN, MuConfig
from .errors import InputError
from .kernels import (
    decode_step,
    fused_attention,
    fused_block_attention,
    fused_feed_forward,
    kernel_weights,
    kernels_callable,
    kernels_usable,
    linear_of_one,
)
from .loss import IGNORE_INDEX, chunked_cross_entropy

_ENOUGH_TOKENS = 16  # for the feed-forward kernel, which first lays its weights out anew
_LARGEST_DROPOUT = 0.999  # of the same: what is kept is divided by 1 - p, in float32
_ROOM = 64  # tokens that a slot of the cache makes room for at a time
ATTENTIONS = 2  # of a layer, each with a slot of its own in the key/value cache

# transformers 5.24 renamed the cache: before, outputs name it `past_key_values`.
_CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"

_USED_BY_GENERATE = ("tokenizer", "assistant_tokenizer")  # which passes them on

_PACKED = "texts packed in one row are not kept apart: give each text a row of its own, with an attention_mask"
# What `transformers` and PEFT pass to every model of their own accord: the values that ask for nothing, and why no
# others are taken.
_PASSED_ON: dict[str, tuple[tuple[bool | None, ...], str]] = {
    "inputs_embeds": ((None,), "a MU model reads token ids, by which it also looks up a token's affinities"),
    "output_attentions": (
        (None, False),
        "attention matrices are never held: mu_sota.inspect_blocks.trace gives a token's rows",
    ),
    "output_router_logits": ((None, False), "a MU model has no experts"),
    "is_causal": ((None, True), "a MU model is causal, and cannot attend to later tokens"),
    **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"), ((None,), _PACKED)),
}

logger = logging.get_logger(__name__)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Asked(TypedDict, total=False):
    """What else the layers can be asked for; see `MuModelOutput`."""

    output_hidden_states: bool | None
    output_sensitivities: bool | None
    output_entropies: bool | None


class AskedOfLoss(Asked, total=False):
    """As `Asked`; and what `Trainer` takes for a column of labels if it stands in the signature.

    Args:
        shift_labels: [B, T], already shifted: the token after each position. Takes the place of `labels`.
    """

    shift_labels: Tensor | None


def _refuse_unknown(model: nn.Module, given: Mapping[str, Any], heeded: Collection[str]) -> None:
    """Every argument is heeded or refused by name.

    Args:
        model: whose `forward` it is.
        given: arguments that are not in its signature.
        heeded: those of them that it knows.

    Raises:
        TypeError: there is no such argument.
        ValueError: it asks for what a MU model does not do.
    """
    for name, value in given.items():
        if name in heeded or name in _USED_BY_GENERATE:
            continue
        if name not in _PASSED_ON:
            _, *named, _ = inspect.signature(type(model).forward).parameters  # but for self and kwargs
            known = [*named, *sorted(heeded)]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{type(model).__name__}.forward() has no argument {name!r}; {hint}")
        harmless, reason = _PASSED_ON[name]
        if not any(value is one for one in harmless):
            raise ValueError(f"{name} cannot be used: {reason}")


def _one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache, under whichever of its names it came."""
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("cache and past_key_values are two names of one argument: give one of them")
    return past_key_values if cache is None else cache


class GrowingLayer(DynamicLayer):
    """A slot of the cache that keeps room for tokens to come: a new one is written behind the others.

    The slot of `transformers` copies all keys and values for every token, which took a third of a step.
    """

    _room: Tensor | None = None  # [2, B, H, tokens, K]
    _kind: tuple[Any, ...] | None = None  # batch, heads, size, dtype and device of the room
    _length = 0  # tokens that are in the room
    _given: list[Tensor | None] | None = None  # keys and values that something has put in the place of the room's

    @property
    def keys(self) -> Tensor | None:
        """[B, H, T, K], a view of the room; None before the first token."""
        return self._both()[0]

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._given = [keys, self._both()[1]]

    @property
    def values(self) -> Tensor | None:
        """As `keys`."""
        return self._both()[1]

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._given = [self._both()[0], values]

    def _both(self) -> list[Tensor | None]:
        if self._given is not None:
            return self._given
        return [None, None] if self._room is None else [*self._room[:, :, :, : self._length].unbind()]

    def get_seq_length(self) -> int:
        """As in `transformers`: tokens that are cached."""
        return self._length if self._given is None else super().get_seq_length()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As in `transformers`: takes keys and values of new tokens, returns those of all."""
        plain = not key_states.requires_grad and not torch.compiler.is_compiling()
        if not plain or key_states.shape != value_states.shape or not self.takes(key_states.shape, key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        new = key_states.shape[-2]
        room = self.grow(key_states.shape, key_states)[:, :, :, : self._length]
        room[0, :, :, -new:], room[1, :, :, -new:] = key_states, value_states
        keys, values = room.unbind()
        return keys, values

    def takes(self, shape: Sequence[int], like: Tensor, past: int | None = None) -> bool:
        """Whether there is nothing yet, or what can stand beside keys of `shape` [B, H, new, K], of a kind as `like`.

        Given `past`, whether just so many tokens are cached, too.
        """
        if self._given is not None:
            self._take_in(*self._given)
        batch, heads, _, size = shape
        same = self._room is None or self._kind == (batch, heads, size, like.dtype, like.device)
        return same and past in (None, self._length)

    def grow(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The room, [2, B, H, tokens, K], after places for keys and values that it `takes` are taken in it.

        They are to be filled.
        """
        if not self.is_initialized:
            self.lazy_initialization(like, like)
        if self._given is not None:
            self._take_in(*self._given)
        batch, heads, new, size = shape
        if self._room is None:
            nothing = like.new_empty(batch, heads, 0, size)
            self._room = self._move(nothing, nothing, new)
        elif self._length + new > self._room.shape[-2]:
            keys, values = self._room[:, :, :, : self._length].unbind()
            self._room = self._move(keys, values, new)
        self._length += new
        return self._room

    def _move(self, keys: Tensor, values: Tensor, new: int) -> Tensor:
        """A larger room that begins with these."""
        batch, heads, length, size = keys.shape
        room = keys.new_empty(2, batch, heads, length + new + _ROOM, size)
        room[0, :, :, :length], room[1, :, :, :length] = keys, values
        self._kind = (batch, heads, size, keys.dtype, keys.device)
        return room

    def _take_in(self, keys: Tensor | None, values: Tensor | None) -> None:
        """What something has put in the place of the room's keys and values: often they are just fewer of the same."""
        self._given = None
        self._length = 0 if keys is None or keys.numel() == 0 else keys.shape[-2]
        if self._room is not None and _begins(keys, self._room[0]) and _begins(values, self._room[1]):
            return
        self._room = None
        if keys is not None and values is not None and self._length:
            self._room = self._move(keys, values, 0)


def _begins(cached: Tensor | None, room: Tensor) -> bool:
    """Whether what is cached is the beginning of the room, and nothing has put another tensor in its place."""
    if cached is None or cached.shape[:2] != room.shape[:2]:
        return False
    return cached.data_ptr() == room.data_ptr() and cached.stride() == room.stride()


def _packed(position_ids: Tensor) -> bool:
    """Whether several texts stand in one row, as `DataCollatorWithFlattening` puts them, each counted from 0."""
    if position_ids.shape[-1] == 1 or torch.compiler.is_compiling():
        return False
    return bool((position_ids.diff() < 0).any())


def _named(cache: Cache | None) -> dict[str, Any]:
    """The cache by the name that outputs of the installed `transformers` have for it."""
    return {_CACHE: cache}


class BlockLinear(nn.Module):
    """16 independent affine maps, one a block: [B, T, N, in] to [B, T, N, out] in one batched product."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_BLOCKS, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(NUM_BLOCKS, out_features))

    def forward(self, blocks: Tensor) -> Tensor:
        return torch.einsum("btni,noi->btno", blocks, self.weight) + self.bias


def _hooks_on_all_modules() -> bool:
    return bool(
        module_hooks._global_forward_pre_hooks
        or module_hooks._global_forward_hooks
        or module_hooks._global_backward_pre_hooks
        or module_hooks._global_backward_hooks
    )


def _as_made(*modules: nn.Module) -> bool:
    """Whether modules are still what this file made, so that a kernel may take their weights without calling them.

    They are not when hooks are on them, or when something has taken their place: adapters, quantised layers,
    parametrizations.
    """
    return not _hooks_on_all_modules() and all(
        type(module) in _MADE
        and getattr(module, "bias", True) is not None
        and all(type(weight) is nn.Parameter for weight in module._parameters.values())
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        for module in modules
    )


class BlockAttention(nn.Module):
    """16 independent causal self-attentions, one a block: each block is a head of its own with its own projections.

    `slot` is its place in the key/value cache.
    """

    def __init__(self, config: MuConfig, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.qkv = BlockLinear(config.block_size, 3 * config.block_size)
        self.out = BlockLinear(config.block_size, config.block_size)

    def forward(self, state: Tensor, bias: Tensor | None, cache: Cache | None) -> Tensor:
        blocks = split_blocks(state)
        compiled = bias is None and kernels_usable(blocks, blocks.shape[-1])
        if compiled and cache is None and _as_made(self.qkv, self.out):
            weights = (self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias)
            return join_blocks(fused_block_attention(blocks, *weights)[0])
        heads = self.qkv(blocks).unflatten(-1, (3, -1)).transpose(2, 3)  # [B, T, 3, N, S]
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, N, T, S] each
        if cache is not None:
            key, value = cache.update(key, value, self.slot)
        if compiled and key.shape == query.shape:
            mixed = fused_attention(heads)[0]
        else:
            mixed = causal_attention(query, key, value, bias).transpose(1, 2)
        return join_blocks(self.out(mixed))


class CrossBlockAttention(nn.Module):
    """One causal self-attention over whole states, where the blocks meet; also says how spread each row was.

    `slot` is its place in the key/value cache.
    """

    def __init__(self, config: MuConfig, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, state: Tensor, bias: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        heads = self.qkv(state).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, H, D/H]
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, H, T, D/H] each
        if cache is not None:
            key, value = cache.update(key, value, self.slot)
        if bias is None and key.shape == query.shape and kernels_usable(heads, heads.shape[-1]):
            mixed, entropy, _ = fused_attention(heads)
        else:
            mixed, entropy = causal_attention_with_entropy(query, key, value, bias)
            mixed = mixed.transpose(1, 2)
        return self.out(mixed.flatten(-2)), entropy.mean(1)


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear."""

    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, state: Tensor) -> Tensor:
        worth_it = state.shape[:-1].numel() >= _ENOUGH_TOKENS and self.up.out_features % 16 == 0
        if (
            worth_it
            and self.dropout.p < _LARGEST_DROPOUT
            and kernels_usable(state)
            and _as_made(self.up, self.dropout, self.down)
        ):
            rate = self.dropout.p if self.training else 0.0
            seed = torch.randint(2**62, ()) if rate else torch.zeros((), dtype=torch.int64)
            weights = (self.up.weight, self.up.bias, self.down.weight, self.down.bias)
            return fused_feed_forward(state, *weights, rate, seed)
        return self.down(self.dropout(F.gelu(self.up(state))))


class DynamicSensitivity(nn.Module):
    """How far each block of each token moves in this layer, a number around 0 to 1: all of it learned.

    Features are the token's affinity to the blocks, mixed by the block interaction, and the entropy of its cross-block
    attention, averaged over heads.
    """

    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.interaction = nn.Parameter(torch.empty(NUM_BLOCKS, NUM_BLOCKS))
        self.up = nn.Linear(NUM_BLOCKS + 1, SENSITIVITY_HIDDEN)
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(SENSITIVITY_HIDDEN, NUM_BLOCKS)
        self.base = nn.Parameter(torch.empty(NUM_BLOCKS))

    def forward(self, affinity: Tensor, entropy: Tensor) -> Tensor:
        """Affinity [B, T, N] and entropy [B, T] to sensitivity [B, T, N]."""
        features = torch.cat([affinity @ self.interaction, entropy[..., None].to(affinity.dtype)], dim=-1)
        return self.base * torch.sigmoid(self.down(self.dropout(F.gelu(self.up(features)))))


class MuLayer(GradientCheckpointingLayer):
    """One layer: what the layer would make of the state, and, block by block, how much of it is taken over."""

    def __init__(self, config: MuConfig, index: int) -> None:
        super().__init__()
        self.block_attention = BlockAttention(config, ATTENTIONS * index)
        self.cross_attention = CrossBlockAttention(config, ATTENTIONS * index + 1)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.sensitivity = DynamicSensitivity(config)

    def forward(self, state: Tensor, affinity: Tensor, bias: Tensor | None, cache: Cache | None = None) -> Tensor:
        blocks = self.block_attention(state, bias, cache)
        crossed, entropy = self.cross_attention(blocks, bias, cache)
        output = self.attention_norm(blocks + crossed)
        output = self.feed_forward_norm(output + self.feed_forward(output))
        sensitivity = self.sensitivity(affinity, entropy)
        return state + join_blocks(sensitivity[..., None] * split_blocks(output - state))

    def weights(self) -> list[Tensor]:
        """All weights, in the order of `mu_decode_step` in kernels.cpp."""
        block, cross, sensitivity = self.block_attention, self.cross_attention, self.sensitivity
        return [
            *(block.qkv.weight, block.qkv.bias, block.out.weight, block.out.bias),
            *(cross.qkv.weight, cross.qkv.bias, cross.out.weight, cross.out.bias),
            *(self.attention_norm.weight, self.attention_norm.bias),
            *(self.feed_forward.up.weight, self.feed_forward.up.bias),
            *(self.feed_forward.down.weight, self.feed_forward.down.bias),
            *(self.feed_forward_norm.weight, self.feed_forward_norm.bias),
            *(sensitivity.interaction, sensitivity.up.weight, sensitivity.up.bias),
            *(sensitivity.down.weight, sensitivity.down.bias, sensitivity.base),
        ]


_MADE = (
    *(nn.Linear, nn.LayerNorm, nn.Dropout, BlockLinear),
    *(BlockAttention, CrossBlockAttention, FeedForward, DynamicSensitivity, MuLayer),
    *(nn.Embedding, nn.ModuleList),
)


def _starting_at(std: float, module: AnyModule) -> AnyModule:
    """Mark a module whose weight starts with another standard deviation than its kind; see `_init_weights`."""
    module.init_std = std  # type: ignore[assignment]
    return module


def _refuse_beyond_memory(config: MuConfig) -> None:
    """Before anything is allocated: a system that has promised too much memory ends the process later.

    Raises:
        InputError: the weights would not fit into this machine's memory.
    """
    sizes = getattr(os, "sysconf_names", {})  # none on Windows
    if torch.empty(0).device.type != "cpu" or not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(sizes):
        return
    need = config.num_parameters * torch.get_default_dtype().itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > memory:
        raise InputError(
            f"a model of {config.num_parameters:,} parameters takes {need / 2**30:,.0f} GiB, but this machine has "
            f"{memory / 2**30:,.0f} GiB of memory; make vocab_size, matrix_size, num_hidden_layers, intermediate_size "
            f"or max_position_embeddings smaller"
        )


class MuPreTrainedModel(PreTrainedModel):
    """Initialisation and what every MU model tells `transformers` about itself."""

    config_class = MuConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MuLayer"]
    _can_record_outputs = {
        "hidden_states": MuLayer,
        "sensitivities": DynamicSensitivity,
        "entropies": OutputRecorder(CrossBlockAttention, index=1),
    }

    def __init__(self, config: MuConfig) -> None:
        _refuse_beyond_memory(config)
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Post-norm layers write states of unit scale into the gate, so token embeddings start there too. Linear maps
        # keep the scale of their input (LeCun), whatever its width: 0.02 would silence the 4-wide block attentions.
        if isinstance(module, nn.Linear | BlockLinear):
            init.normal_(module.weight, std=getattr(module, "init_std", module.weight.shape[-1] ** -0.5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=getattr(module, "init_std", 1.0))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DynamicSensitivity):
            init.eye_(module.interaction)
            init.constant_(module.base, 0.5)

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in `transformers`, which knows of the embedding and the output projection; the affinities follow."""
        resized: nn.Embedding = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        model: Any = self.base_model
        before, rows = model.affinity, len(resized.weight)
        if rows != len(before.weight):
            affinity: Any = self._get_resized_embeddings(before, rows, mean_resizing=mean_resizing)
            affinity.requires_grad_(before.weight.requires_grad)
            model.affinity = _starting_at(before.init_std, affinity)
        return resized


@dataclass
class MuModelOutput(BaseModelOutputWithPast):
    """As `BaseModelOutputWithPast`, and what the layers can say of themselves.

    Attributes:
        sensitivities: with `output_sensitivities=True`, for each layer how far each block moved, [B, T, N].
        entropies: with `output_entropies=True`, for each layer the entropy in nats of the cross-block attention,
            averaged over heads, [B, T].
    """

    sensitivities: tuple[Tensor, ...] | None = None
    entropies: tuple[Tensor, ...] | None = None

    if _CACHE != "cache":
        cache = property(lambda self: self.past_key_values)


class _Weights:
    """All weights of a model, gathered once for the kernel that takes one new token of a cached text through it.

    To ask 24 layers for their weights, and whether a kernel may take them, takes as long as the kernel.
    """

    def __init__(self, model: "MuModel") -> None:
        config: Any = model.config
        self.handles = RemovableHandle.next_id
        _, *self.modules = model.modules()
        self.attributes = [*map(vars, model.modules())]
        self.holders = [(of, name) for of in self.attributes for name in ("_parameters", "_modules") if of[name]]
        self.parts, self.sizes = self.look()
        self.dropouts, self.norms, self.crosses, self.tables = (
            [module for module in self.modules if type(module) is kind]
            for kind in (nn.Dropout, nn.LayerNorm, CrossBlockAttention, nn.Embedding)
        )
        self.slots = [part.slot for part in self.modules if isinstance(part, BlockAttention | CrossBlockAttention)]
        self.obstacle = next((module for module in self.modules if not _as_made(module)), None)
        self.weights: list[Tensor] = []
        if self.obstacle is None:
            self.weights = model.weights() + [weight for layer in model.layers for weight in layer.weights()]  # type: ignore[operator]
        with torch.device("meta"):
            shapes = [weight.shape for weight in MuLayer(config, 0).weights()] * len(model.layers)
        size, width = config.hidden_size, len(model.layers) * NUM_BLOCKS
        self.usable = (
            [weight.shape for weight in self.weights[5:]] == shapes
            and [weight.shape[-1] for weight in self.weights[:5]] == [size, size, width, size, size]
            and config.intermediate_size % 16 == 0
            and {type(weight) for weight in self.weights} == {nn.Parameter}
            and {id(weight) for weight in self.weights} == {id(weight) for weight in model.parameters()}
        )
        self.counts = [*map(Tensor.numel, self.weights)]

    def look(self) -> tuple[list[Any], list[int]]:
        """What changes when something else takes the place of a weight, of a module, or of its method."""
        contents = [attributes[name].values() for attributes, name in self.holders]
        return [*chain.from_iterable(contents), *map(type, self.modules)], [*map(len, self.attributes)]

    def settings_as_made(self, config: MuConfig) -> bool:
        """Whether the modules have the settings that the kernel knows of, and drop nothing."""
        return (
            not any(module.training and module.p for module in self.dropouts)
            and all(module.eps == config.layer_norm_eps for module in self.norms)
            and all(module.num_heads == config.num_attention_heads for module in self.crosses)
            and all(module.max_norm is None for module in self.tables)
        )

    def unchanged(self) -> bool:
        """Whether nothing has come since that would make these other weights."""
        if self.obstacle is not None:
            return not _as_made(self.obstacle)
        if self.handles != RemovableHandle.next_id:  # it counts all hooks that were ever set
            return False
        parts, sizes = self.look()
        same = len(parts) == len(self.parts) and all(map(is_, parts, self.parts))
        return same and sizes == self.sizes and [*map(Tensor.numel, self.weights)] == self.counts

    def for_kernel(self, config: MuConfig) -> list[Tensor] | None:
        """The weights, if the kernel may take them now.

        Raises:
            TypeError: some are of another dtype, or on another device.
        """
        if not self.usable or _hooks_on_all_modules() or not self.settings_as_made(config):
            return None
        return kernel_weights(self.weights)


class MuModel(MuPreTrainedModel):
    """Token ids to final states."""

    def __init__(self, config: MuConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = _starting_at(0.02, nn.Embedding(config.max_position_embeddings, config.hidden_size))
        # The layers' affinity tables side by side, so that a token's L x N values are one row, gathered once.
        self.affinity = _starting_at(0.02, nn.Embedding(config.vocab_size, config.num_hidden_layers * NUM_BLOCKS))
        self.layers = nn.ModuleList(MuLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._gathered: _Weights | None = None
        self.post_init()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_gathered": None}  # a copy gathers its own

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.token_embedding = value  # type: ignore[assignment]

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[Asked],
    ) -> MuModelOutput:
        """States of a batch of token ids.

        Args:
            input_ids: [B, T] int64; with a cache, the new tokens alone.
            attention_mask: [B, T], 1 at tokens and 0 at padding; with a cache, cached tokens included.
            position_ids: [B, T]; by default counted from the first token of each row, cached ones included.
            past_key_values, cache: a cache of `transformers`, under either name, which is filled; it has two slots a
                layer.
            use_cache: make a cache if none is given.
            kwargs: what else is asked for; see `Asked`.

        Returns:
            `last_hidden_state` [B, T, D], block-major (see `mu_sota.layout`); the cache; with
            `output_hidden_states`, `output_sensitivities` or `output_entropies`, what these name.

        Raises:
            ValueError: the sequence is longer than the learned positions, there are no tokens, several texts are packed
                in a row, or an argument asks for what a MU model does not do.
            TypeError: there is no such argument.
        """
        _refuse_unknown(self, kwargs, Asked.__optional_keys__)
        if input_ids is None:
            raise ValueError("input_ids are missing: a MU model reads token ids [B, T]")
        if input_ids.shape[1] == 0:  # PyTorch's attention on a CPU ends the process
            raise ValueError("the input has no tokens: begin a text with the tokenizer's bos_token")
        if position_ids is not None and attention_mask is None and _packed(position_ids):
            raise ValueError(f"position_ids begin anew within a row: {_PACKED}")
        cache = _one_cache(past_key_values, cache)
        if use_cache and cache is None:
            cache = DynamicCache()
        if cache is not None:
            if self.layers[0].gradient_checkpointing and self.training and torch.is_grad_enabled():
                raise ValueError(
                    "a cache cannot be filled under gradient checkpointing, which runs every layer twice: train "
                    "without use_cache, or call model.eval() first"
                )
            _give_slots(cache, ATTENTIONS * len(self.layers))
        new, device = input_ids.shape[1], input_ids.device
        past = 0 if cache is None else cache.get_seq_length()
        keys = new if cache is None else cache.get_mask_sizes(new, 0)[0]
        positions = self.config.max_position_embeddings
        # A cache of a fixed size counts in a tensor, which a compiled graph should not have to read.
        if not isinstance(past, Tensor) and past + new > positions:
            raise ValueError(f"the input has {past + new} tokens, but this model has learned {positions} positions")
        bias = attention_bias(attention_mask, new, keys, past, device)
        step = None if bias is not None else self._step(input_ids, position_ids, cache, past)
        if step is not None:
            return MuModelOutput(last_hidden_state=step, **_named(cache))
        if position_ids is None:
            if attention_mask is None or attention_mask.dim() == 4:
                position_ids = (past + torch.arange(new, device=device))[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
        state = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        affinities = self.affinity(input_ids).unflatten(-1, (-1, NUM_BLOCKS)).unbind(-2)  # [B, T, N] for each layer
        for layer, affinity in zip(self.layers, affinities, strict=True):
            state = layer(state, affinity, bias, cache)
        return MuModelOutput(last_hidden_state=self.norm(state), **_named(cache))

    def _step(self, input_ids: Tensor, position_ids: Tensor | None, cache: Cache | None, past: int) -> Tensor | None:
        """States of one new token of each cached text, from a kernel for just this; None where it cannot take it."""
        if input_ids.shape[1] > 1 or not len(input_ids) or cache is None or torch.is_grad_enabled() or self.training:
            return None
        config: Any = self.config
        first = self.token_embedding.weight
        heads, size = config.num_attention_heads, config.hidden_size
        integers = all(ids is None or not ids.is_floating_point() for ids in (input_ids, position_ids))
        largest_head = size // min(NUM_BLOCKS, heads)
        if not integers or input_ids.device != first.device or not kernels_callable(first, largest_head):
            return None
        if set(map(type, cache.layers)) != {GrowingLayer}:
            return None
        if self._gathered is None or not self._gathered.unchanged():
            self._gathered = _Weights(self)
        weights = self._gathered.for_kernel(config)
        if weights is None:
            return None
        batch, ids = len(input_ids), input_ids.flatten().tolist()
        positions = [past] * batch if position_ids is None else position_ids.expand(batch, 1).flatten().tolist()
        tokens, places, affinities = map(len, weights[:3])
        if min(*ids, *positions) < 0 or max(ids) >= min(tokens, affinities) or max(positions) >= places:
            return None  # where PyTorch refuses
        shapes = [(batch, count, 1, size // count) for count in (NUM_BLOCKS, heads)]
        slots: list[Any] = [cache.layers[slot] for slot in self._gathered.slots]
        if not all(slot.takes(shapes[at % ATTENTIONS], first, past) for at, slot in enumerate(slots)):
            return None
        rooms = [slot.grow(shapes[at % ATTENTIONS], first) for at, slot in enumerate(slots)]
        return decode_step(ids, positions, weights, rooms, past + 1, config.layer_norm_eps)

    def weights(self) -> list[Tensor]:
        """All weights but those of the layers, in the order of `mu_decode_step` in kernels.cpp."""
        tables = (self.token_embedding.weight, self.position_embedding.weight, self.affinity.weight)
        return [*tables, self.norm.weight, self.norm.bias]


def _give_slots(cache: Cache, slots: int) -> None:
    """`generate` makes caches of one slot a layer; the missing ones become as the first, which is still empty.

    Raises:
        ValueError: the cache has been filled by another model.
    """
    untouched = all(type(layer) is DynamicLayer and not layer.is_initialized for layer in cache.layers)
    if type(cache) is DynamicCache and not cache.offloading and untouched:
        cache.layers = [GrowingLayer() for _ in range(slots)]
        return
    missing = slots - len(cache.layers)
    if not cache.layers or not missing:
        return
    if missing < 0 or cache.get_seq_length() > 0:
        raise ValueError(
            f"the cache has {len(cache.layers)} slots, but this model fills {slots}: it is another model's"
        )
    cache.layers += [deepcopy(cache.layers[0]) for _ in range(missing)]


@dataclass
class MuCausalLMOutput(CausalLMOutputWithPast):
    """As `CausalLMOutputWithPast`, and what else a MU model tells.

    Attributes:
        num_correct: right top-1 predictions among the labelled tokens, a scalar.
        sensitivities, entropies: as in `MuModelOutput`.
    """

    num_correct: Tensor | None = None
    sensitivities: tuple[Tensor, ...] | None = None
    entropies: tuple[Tensor, ...] | None = None

    if _CACHE != "cache":
        cache = property(lambda self: self.past_key_values)


def _at_padding(mask: Tensor, shift_labels: Tensor) -> Tensor:
    """[B, T], true where a prediction [B, T] is made from padding, or is of it.

    Args:
        mask: [B, T or more], 1 at tokens and 0 at padding, cached tokens included.
    """
    real = mask[:, -shift_labels.shape[1] :] != 0
    return ~(real & F.pad(real[:, 1:], (0, 1), value=True))


class MuForCausalLM(MuPreTrainedModel, GenerationMixin):
    """The MU model with its output projection, for training and `generate`."""

    accepts_loss_kwargs = True  # tells `Trainer` that the loss is divided by `num_items_in_batch`

    def __init__(self, config: MuConfig) -> None:
        super().__init__(config)
        self.model = MuModel(config)
        self.lm_head = _starting_at(0.02, nn.Linear(config.hidden_size, config.vocab_size))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[AskedOfLoss],
    ) -> MuCausalLMOutput:
        """Logits of the next token, or the loss, or both.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, use_cache, cache: as in `MuModel`.
            labels: [B, T], aligned with `input_ids` as everywhere in `transformers`: the shift by one happens here.
                Padding counts for nothing, on whichever side it is: neither as a label, nor what is predicted from it.
            num_items_in_batch: what the summed loss is divided by, as `Trainer` counts it over the micro-batches of a
                step; the number of labelled tokens by default. What is counted in it and left out as padding, the
                others stand for. Where nothing is labelled, the loss is 0.
            skip_logits: do not compute logits, only the loss, from chunks. Default: in training with labels.
            logits_to_keep: compute only the last so many positions of the logits, 0 for all; or those of these indices.
            kwargs: what else is asked for; see `AskedOfLoss`.

        Returns:
            `loss` in nats a token, `logits` [B, T, V], `num_correct`, the cache, and what is asked for of
            `hidden_states`, `sensitivities` and `entropies`.

        Raises:
            ValueError: the sequence is longer than the learned positions, there are no tokens, labels have another
                shape than they should, or an argument asks for what a MU model does not do.
            TypeError: there is no such argument.
        """
        _refuse_unknown(self, kwargs, AskedOfLoss.__optional_keys__)
        shift_labels = kwargs.pop("shift_labels", None)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if labels is not None and shift_labels is None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)

        loss = num_correct = logits = None
        if shift_labels is not None:
            asked = counted = (shift_labels != IGNORE_INDEX).sum()
            if attention_mask is not None and attention_mask.dim() == 2:
                shift_labels = shift_labels.masked_fill(_at_padding(attention_mask, shift_labels), IGNORE_INDEX)
                counted = (shift_labels != IGNORE_INDEX).sum()
            total, num_correct = self._summed_loss(hidden, shift_labels)
            items = counted
            if num_items_in_batch is not None:
                items = torch.as_tensor(num_items_in_batch, device=total.device) * (counted / asked.clamp(min=1))
            loss = total / items.masked_fill(items == 0, 1)
        if skip_logits is None:
            skip_logits = self.training and loss is not None
        if not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(hidden[:, kept])
        return MuCausalLMOutput(
            loss=loss,
            logits=logits,
            num_correct=num_correct,
            hidden_states=outputs.hidden_states,
            sensitivities=outputs.sensitivities,
            entropies=outputs.entropies,
            **_named(outputs.cache),
        )

    def _summed_loss(self, hidden: Tensor, shift_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats, and the number of right top-1 predictions."""
        head = self.lm_head
        if _as_made(head):
            return chunked_cross_entropy(hidden, head.weight, head.bias, shift_labels)
        # An adapter or a quantised layer has more to it than its weight.
        logits, targets = head(hidden).flatten(0, -2), shift_labels.flatten()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        return total, (logits.argmax(-1) == targets).sum()

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.lm_head
        one = hidden.shape[:2] == (1, 1) and not torch.is_grad_enabled()
        usable = one and _as_made(head) and kernels_callable(hidden) and kernels_callable(head.weight)
        if usable and head.weight.shape[1] == hidden.shape[-1]:
            return linear_of_one(hidden, head.weight, head.bias)
        return head(hidden)

    @wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        for name in {"cache", "past_key_values"} & kwargs.keys() - {_CACHE}:
            kwargs[_CACHE] = _one_cache(kwargs.pop(name), kwargs.get(_CACHE))
        return super().generate(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: its pages of keys and values do not reach these attentions, which would see the last token alone.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("continuous batching does not work with this model: use generate")

    def _prepare_generated_length(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """As in `generate` of `transformers`, and a text ends at the last learned position.

        After a prompt that fills all positions, as `truncation=True` leaves it, comes one more token, which the model
        need not read.

        Raises:
            ValueError: the prompt is longer than the learned positions.
        """
        prepared = super()._prepare_generated_length(generation_config, *args, **kwargs)  # type: ignore[misc]
        positions = self.config.max_position_embeddings
        prompt = kwargs["input_ids_length"]
        if prompt > positions:
            raise ValueError(
                f"the prompt has {prompt} tokens, but this model has learned {positions} positions: give at most the "
                f"last {positions}, as with truncation=True, or in a pipeline with handle_long_generation='hole'"
            )
        longest = max(positions, prompt + 1)
        if prepared.max_length > longest:
            logger.warning(
                f"{prepared.max_length - prompt} new tokens were asked for after a prompt of {prompt}, but this model "
                f"has learned {positions} positions: generation ends after {longest - prompt}"
            )
            prepared.max_length = longest
        return prepared

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`; what prompt lookup proposes ends at the last learned position."""
        generator: Any = super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]
        propose = generator.get_candidates

        def within_positions(input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            ids, logits = propose(input_ids, *args, **kwargs)
            return ids[:, : self.config.max_position_embeddings], logits

        generator.get_candidates = within_positions
        return generator

    def _get_static_cache_init_shape(self) -> None:
        """No slot is made before its first use: those of the two attentions have different shapes."""


# Under label smoothing, `Trainer` shifts labels for the classes that it finds here. Others learn to predict what they
# read.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(MuConfig.model_type, MuForCausalLM.__name__)
