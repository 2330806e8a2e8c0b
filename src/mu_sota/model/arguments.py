"""The arguments of `forward`: each is used, or refused by name."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .errors import suggestion

# transformers 5.24 renamed the cache: before, outputs name it `past_key_values`.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"

PACKED = "texts packed in one row are not kept apart: give each text a row of its own, with an attention_mask"

_USED_BY_GENERATE = ("tokenizer", "assistant_tokenizer")  # which passes them on

# `transformers` and PEFT pass these to every model: for each, the values that ask for nothing, and why others are
# refused.
_PASSED_ON: dict[str, tuple[tuple[bool | None, ...], str]] = {
    "inputs_embeds": ((None,), "a MU model reads token ids, by which it also looks up a token's affinities"),
    "output_attentions": (
        (None, False),
        "attention matrices are never held: mu_sota.inspection.trace gives a token's rows",
    ),
    "output_router_logits": ((None, False), "a MU model has no experts"),
    "is_causal": ((None, True), "a MU model is causal, and cannot attend to later tokens"),
    **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"), ((None,), PACKED)),
}


class LayerOutputs(TypedDict, total=False):
    """Further outputs of the layers; see `MuModelOutput`."""

    output_hidden_states: bool | None
    output_sensitivities: bool | None
    output_entropies: bool | None


class LossInputs(LayerOutputs, total=False):
    """Further arguments of `MuForCausalLM`. In its signature, `Trainer` would take `shift_labels` for a column.

    Args:
        shift_labels: [B, T], already shifted: the token after each position. Replaces `labels`.
    """

    shift_labels: Tensor | None


def refuse_unknown(model: nn.Module, arguments: Mapping[str, Any], used: Collection[str]) -> None:
    """Refuse arguments of `model.forward` that would have no effect.

    Args:
        model: whose `forward` was called.
        arguments: those that are not in its signature.
        used: names of those that it uses.

    Raises:
        TypeError: there is no such argument.
        ValueError: it asks for something that a MU model does not do.
    """
    for name, value in arguments.items():
        if name in used or name in _USED_BY_GENERATE:
            continue
        if name not in _PASSED_ON:
            _, *named, _ = inspect.signature(type(model).forward).parameters  # but for self and kwargs
            known = [*named, *sorted(used)]
            hint = suggestion(name, known) or f"there are {', '.join(known)}"
            raise TypeError(f"{type(model).__name__}.forward() has no argument {name!r}; {hint}")
        harmless, reason = _PASSED_ON[name]
        if not any(value is one for one in harmless):
            raise ValueError(f"{name} cannot be used: {reason}")


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache, under whichever of its two names it was passed.

    Raises:
        ValueError: both names hold a cache, and not the same.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("cache and past_key_values are two names of one argument: give one of them")
    return past_key_values if cache is None else cache


def named_cache(cache: Cache | None) -> dict[str, Any]:
    """The cache under the name that the installed `transformers` uses in outputs."""
    return {CACHE_NAME: cache}


def is_packed(position_ids: Tensor) -> bool:
    """True if a row holds several texts, each counted from 0, as `DataCollatorWithFlattening` makes them."""
    if position_ids.shape[-1] == 1 or torch.compiler.is_compiling():
        return False
    return bool((position_ids.diff() < 0).any())
