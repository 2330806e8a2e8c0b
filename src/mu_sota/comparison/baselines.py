"""Baselines: GPT-2 and Llama style Transformers of `transformers`, built, saved and loaded as MU is.

Both tie the output projection to the embedding, as GPT-2 and the small Llamas do, and have heads of 32 values. Dropout
acts on the embedding and on what attention and feed-forward add to the stream, as in GPT-2; not on attention weights,
where MU has none either, and which would make a step on a CPU half as long again. Their loss is computed as MU's is,
from chunks, and GELU by one operation: none of them is slow for want of care.

A MU model may have tables to look up, which cost no FLOPs and would help any model. Beside such a one stands a Llama
with the same tables, too: a difference to it is not that of having them.

Legend: B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from mu_sota.model.arguments import CACHE_NAME
from mu_sota.model.cache import add_cache_layers
from mu_sota.model.configuration import MuConfig
from mu_sota.model.lookups import LookupTables, known_tokens
from mu_sota.model.loss import IGNORE_INDEX, chunked_cross_entropy
from mu_sota.model.modeling import MuCausalLMOutput, MuForCausalLM
from mu_sota.saved.load_save import load_model

HEAD_SIZE = 32


def tables_of(config: PreTrainedConfig) -> dict[str, int]:
    """The fields of a configuration that say which tables a model looks up; 0 where it has none."""
    return {name: getattr(config, name, 0) for name in ("pair_table_rows", "induction_tables")}


class _TokenLoss:
    """The loss interface of `MuForCausalLM` for a model of `transformers`."""

    accepts_loss_kwargs = True  # tells `Trainer` that the loss is divided by `num_items_in_batch`

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | MuCausalLMOutput:
        """With `shift_labels` [B, T], the loss and `num_correct` and no logits; else as in `transformers`.

        Raises:
            TypeError: an argument beside `shift_labels` that this loss would ignore.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        if shift_labels is None:
            return super().forward(**inputs, logits_to_keep=logits_to_keep, **kwargs)  # type: ignore[misc]
        if unknown := kwargs.keys() - {"labels"}:  # which `Trainer` passes beside
            raise TypeError(f"with shift_labels, {type(self).__name__}.forward() does not take {', '.join(unknown)}")
        hidden = self.base_model(**inputs, use_cache=False).last_hidden_state  # type: ignore[attr-defined]
        head: nn.Linear = self.lm_head  # type: ignore[attr-defined]
        total, num_correct = chunked_cross_entropy(hidden, head.weight, head.bias, shift_labels)
        if num_items_in_batch is None:
            num_items_in_batch = (shift_labels != IGNORE_INDEX).sum().clamp(min=1)
        return MuCausalLMOutput(loss=total / num_items_in_batch, num_correct=num_correct)


class Gpt2Style(_TokenLoss, GPT2LMHeadModel):
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part, GELU."""


def _with_lookups(stream: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before a `LlamaModel` runs: instead of ids [B, T], embeddings with rows of its tables added, as in `MuModel`."""
    ids, cache, use_cache = kwargs["input_ids"], kwargs.get(CACHE_NAME), kwargs.get("use_cache")
    if cache is None and (stream.config.use_cache if use_cache is None else use_cache):
        cache = DynamicCache()
    past = 0
    if cache is not None:
        add_cache_layers(cache, len(stream.layers) + 1)  # the last one for the ids
        past = cache.get_seq_length()
    known = known_tokens(ids, kwargs.get("attention_mask"), cache, len(stream.layers))
    rows = stream.lookups(known, past + torch.arange(ids.shape[1], device=ids.device))
    return args, kwargs | {"input_ids": None, "inputs_embeds": stream.embed_tokens(ids) + rows, CACHE_NAME: cache}


class LlamaStyle(_TokenLoss, LlamaForCausalLM):
    """Llama (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, no biases.

    The library's has no dropout but in attention. Here the embedding and what attention and feed-forward add get it in
    training, as in GPT-2; `config.dropout` says how much. It has MU's tables if `config.pair_table_rows` or
    `config.induction_tables` ask for them. All these are fields that `transformers` keeps, though it does not know
    them.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        p: float = getattr(config, "dropout", 0.0)
        self.model.embed_tokens.register_forward_hook(lambda module, _, out: F.dropout(out, p, module.training))
        for layer in self.model.layers:
            layer.self_attn.o_proj.register_forward_hook(lambda module, _, out: F.dropout(out, p, module.training))
            layer.mlp.register_forward_hook(lambda module, _, out: F.dropout(out, p, module.training))
        tables = tables_of(config)
        if any(tables.values()):
            self.model.lookups = LookupTables(config.hidden_size, **tables, vocab_size=config.vocab_size, dropout=p)
            for table in self.model.lookups.tables:
                nn.init.zeros_(table.weight)
            self.model.register_forward_pre_hook(_with_lookups, with_kwargs=True)


class Shape(NamedTuple):
    """Of a standard Transformer: layers, width of the stream, width inside the feed-forward."""

    layers: int
    width: int
    inner: int


class Family(NamedTuple):
    """A kind of standard Transformer.

    Attributes:
        label: for people.
        configure: shape to configuration; more fields as keywords.
        usual_inner: inner widths per width that are usual.
        tables: True if it has the tables of the MU model beside it, and is a contender where that has some.
    """

    label: str
    configure: Callable[..., PreTrainedConfig]
    usual_inner: float
    tables: bool = False

    def config(self, shape: Shape, like: MuConfig) -> PreTrainedConfig:
        """The configuration of this shape, with vocabulary, positions, special tokens and tables of a MU model."""
        return self.configure(
            shape,
            num_attention_heads=shape.width // HEAD_SIZE,
            max_position_embeddings=like.max_position_embeddings,
            vocab_size=like.vocab_size,
            tie_word_embeddings=True,
            bos_token_id=like.bos_token_id,
            eos_token_id=like.eos_token_id,
            # Llama would never train its row of the embedding, and with words of a text it is that of <eos>.
            pad_token_id=None,
            **(tables_of(like) if self.tables else {}),
        )


def _gpt2(shape: Shape, **more: Any) -> GPT2Config:
    return GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_inner=shape.inner,
        activation_function="gelu_pytorch_tanh",  # GPT-2's "gelu_new" in one operation instead of eight
        attn_pdrop=0.0,
        **more,
    )


def _llama(shape: Shape, **more: Any) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=shape.layers, hidden_size=shape.width, intermediate_size=shape.inner, **more)


FAMILIES = {
    "gpt2": Family("GPT-2", _gpt2, usual_inner=4.0),
    "llama": Family("Llama", _llama, usual_inner=8 / 3),
    "llama-tables": Family("Llama with MU's tables", _llama, usual_inner=8 / 3, tables=True),
}


def families_beside(mu: MuConfig) -> dict[str, Family]:
    """Those that are compared with a MU model: one with tables only if that has some."""
    return {name: family for name, family in FAMILIES.items() if any(tables_of(mu).values()) or not family.tables}


class _Kind(NamedTuple):
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    dropouts: tuple[str, ...]


_KINDS = {
    kind.config.model_type: kind
    for kind in (
        _Kind(MuConfig, MuForCausalLM, ("dropout",)),
        _Kind(GPT2Config, Gpt2Style, ("resid_pdrop", "embd_pdrop")),
        _Kind(LlamaConfig, LlamaStyle, ("dropout",)),
    )
}


def config_from_dict(content: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of MU or of a standard Transformer, from its `to_dict`."""
    return _KINDS[content["model_type"]].config(**content)


def load(folder: Path) -> PreTrainedModel:
    """A model that `save_pretrained` left, in eval mode.

    Raises:
        InputError: it holds no MU, GPT-2 or Llama, or one that cannot be used.
    """
    return load_model(folder, {name: kind.model for name, kind in _KINDS.items()})


def with_dropout(config: PreTrainedConfig, dropout: float) -> PreTrainedConfig:
    """The configuration with another dropout, everywhere where tuning sets it."""
    return config_from_dict(config.to_dict() | dict.fromkeys(_KINDS[config.model_type].dropouts, dropout))


def build(config: PreTrainedConfig, dropout: float) -> PreTrainedModel:
    """A new model, its weights drawn from the global random state."""
    return _KINDS[config.model_type].model(with_dropout(config, dropout))
