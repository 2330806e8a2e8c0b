"""The MU model: `MuModel` from token ids to states, `MuForCausalLM` with output projection, loss and generation.

Legend: B batch, T time, D state (block-major), N = 16 blocks, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .arguments import CACHE_NAME, PACKED, LayerOutputs, LossInputs, is_packed, named_cache, one_cache, refuse_unknown
from .attention import attention_bias, rotary_turns
from .backend import unchanged, use_linear_kernel
from .blocks import NUM_BLOCKS
from .cache import ATTENTIONS, add_cache_layers
from .configuration import SOURCES_BY_TOKEN, MuConfig, refuse_beyond_memory
from .decoding import DecodingWeights, decode
from .generation import MuGenerationMixin
from .kernels import linear_of_one
from .layers import BlockLinear, CrossBlockAttention, DynamicSensitivity, MuLayer
from .lookups import LookupTables, known_tokens
from .loss import IGNORE_INDEX, chunked_cross_entropy
from .sources import BlockSources

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def _starting_at(std: float, module: AnyModule) -> AnyModule:
    """Mark a module whose weight starts with another standard deviation than its kind; see `_init_weights`."""
    module.init_std = std  # type: ignore[assignment]
    return module


class MuPreTrainedModel(PreTrainedModel):
    """Initialisation of the weights, and settings that `transformers` reads from a model's class."""

    config_class = MuConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _can_compile_fullgraph = True  # a step of `generate` with a static cache, which it compiles on a GPU
    _no_split_modules = ["MuLayer"]
    _can_record_outputs = {
        "hidden_states": MuLayer,
        "sensitivities": DynamicSensitivity,
        "entropies": OutputRecorder(CrossBlockAttention, index=1),
    }

    def __init__(self, config: MuConfig) -> None:
        refuse_beyond_memory(config)
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # A layer's candidate state leaves a LayerNorm at unit scale, so token embeddings start at unit scale too.
        # Linear maps keep the scale of their input (LeCun): 0.02 would make block attentions over 4 values nearly 0.
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
        """As in `transformers`, which knows of the embedding and the output projection; all tables by token follow."""
        resized: nn.Embedding = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        model: Any = self.base_model
        rows, count = len(resized.weight), len(model.affinity.weight)

        def follow(before: Any) -> Any:
            after = self._get_resized_embeddings(before, rows, mean_resizing=mean_resizing)
            after.requires_grad_(before.weight.requires_grad)
            return _starting_at(before.init_std, after)

        if rows != count:
            model.affinity = follow(model.affinity)
            if model.lookups is not None:
                model.lookups.induction = nn.ModuleList(map(follow, model.lookups.induction))
            if model.sources is not None:
                for name in SOURCES_BY_TOKEN:
                    model.sources.tables[name] = follow(model.sources.tables[name])
        return resized


@dataclass
class MuModelOutput(BaseModelOutputWithPast):
    """As `BaseModelOutputWithPast`, with the further outputs of the layers.

    Attributes:
        sensitivities: with `output_sensitivities=True`, for each layer how far each block moved, [B, T, N].
        entropies: with `output_entropies=True`, for each layer the entropy in nats of the cross-block attention,
            averaged over heads, [B, T].
    """

    sensitivities: tuple[Tensor, ...] | None = None
    entropies: tuple[Tensor, ...] | None = None

    if CACHE_NAME != "cache":
        cache = property(lambda self: self.past_key_values)


class MuModel(MuPreTrainedModel):
    """Token ids to final states."""

    def __init__(self, config: MuConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding: nn.Embedding | None = None
        if config.position_encoding == "learned":
            positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.position_embedding = _starting_at(0.02, positions)
        self.lookups: LookupTables | None = None
        if config.pair_table_rows or config.induction_tables:
            sizes = (config.hidden_size, config.pair_table_rows, config.induction_tables, config.vocab_size)
            self.lookups = LookupTables(*sizes, config.dropout)
            for table in self.lookups.tables:
                _starting_at(0.0, table)
        self.sources: BlockSources | None = None
        if config.block_inputs == "by_name":
            self.sources = BlockSources(config.block_size, config.max_position_embeddings, config.vocab_size)
            for by_name in self.sources.tables.values():
                _starting_at(0.5, by_name)
        # The layers' affinity tables side by side, so that a token's L x N values are one row, gathered once.
        self.affinity = _starting_at(0.02, nn.Embedding(config.vocab_size, config.num_hidden_layers * NUM_BLOCKS))
        self.layers = nn.ModuleList(MuLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoding_weights: DecodingWeights | None = None
        self.post_init()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"decoding_weights": None}  # a copy gathers its own

    @property
    def reads_past(self) -> bool:
        """True if a token's state begins with more than the token and its position, so that ids are cached, too."""
        return self.lookups is not None or self.sources is not None

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
        **kwargs: Unpack[LayerOutputs],
    ) -> MuModelOutput:
        """States of a batch of token ids.

        Args:
            input_ids: [B, T] int64; with a cache, the new tokens alone.
            attention_mask: [B, T], 1 at tokens and 0 at padding; with a cache, cached tokens included.
            position_ids: [B, T]; by default counted from the first token of each row, cached ones included.
            past_key_values, cache: a cache of `transformers`, under either name, which is filled: two cache layers for
                each layer of the model, and one for the ids themselves where a token's past is looked up.
            use_cache: make a cache if there is none.
            kwargs: which further outputs to return; see `LayerOutputs`.

        Returns:
            `last_hidden_state` [B, T, D], block-major (see `blocks.py`); the cache; `hidden_states`, `sensitivities`
            and `entropies` if asked for.

        Raises:
            ValueError: the sequence has more tokens than the model has positions, there are none, a row holds several
                packed texts, or an argument asks for something that a MU model does not do.
            TypeError: there is no such argument.
        """
        refuse_unknown(self, kwargs, LayerOutputs.__optional_keys__)
        if input_ids is None:
            raise ValueError("input_ids are missing: a MU model reads token ids [B, T]")
        if input_ids.shape[1] == 0:  # PyTorch's attention on a CPU ends the process
            raise ValueError("the input has no tokens: begin a text with the tokenizer's bos_token")
        if position_ids is not None and attention_mask is None and is_packed(position_ids):
            raise ValueError(f"position_ids begin anew within a row: {PACKED}")
        cache = self._cache_to_fill(one_cache(past_key_values, cache), use_cache)
        new, device = input_ids.shape[1], input_ids.device
        past = 0 if cache is None else cache.get_seq_length()
        keys = new if cache is None else cache.get_mask_sizes(new, 0)[0]
        positions = self.config.max_position_embeddings
        # A cache of a fixed size counts in a tensor, which a compiled graph should not have to read.
        if not isinstance(past, Tensor) and past + new > positions:
            raise ValueError(f"the input has {past + new} tokens, but this model has {positions} positions")
        bias = attention_bias(attention_mask, new, keys, past, device)
        if bias is None:  # one kernel call for a new token of cached texts; a first reader may skip it
            decoded = decode(self, input_ids, position_ids, cache, past)
            if decoded is not None:
                return MuModelOutput(last_hidden_state=decoded, **named_cache(cache))
        if position_ids is None:
            if attention_mask is None or attention_mask.dim() == 4:
                position_ids = (past + torch.arange(new, device=device))[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
        state = self.token_embedding(input_ids)
        turns: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.position_embedding is not None:
            state = state + self.position_embedding(position_ids)
        else:
            sizes = self.config.block_size, self.config.hidden_size // self.config.num_attention_heads
            turns = (rotary_turns(position_ids, sizes[0]), rotary_turns(position_ids, sizes[1]))
        if self.reads_past:
            known = known_tokens(input_ids, attention_mask, cache, ATTENTIONS * len(self.layers))
            at = past + torch.arange(new, device=device)
            if self.lookups is not None:
                state = state + self.lookups(known, at)
            if self.sources is not None:
                state = self.sources(state, known, at, position_ids)
        affinities = self.affinity(input_ids).unflatten(-1, (-1, NUM_BLOCKS)).unbind(-2)  # [B, T, N] for each layer
        for layer, affinity in zip(self.layers, affinities, strict=True):
            state = layer(state, affinity, bias, cache, turns)
        return MuModelOutput(last_hidden_state=self.norm(state), **named_cache(cache))

    def _cache_to_fill(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache with a layer for every attention; a new one if it is asked for.

        Raises:
            ValueError: under gradient checkpointing, or another model has filled it.
        """
        if use_cache and cache is None:
            cache = DynamicCache()
        if cache is None:
            return None
        if self.layers[0].gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError(
                "a cache cannot be filled under gradient checkpointing, which runs every layer twice: train without "
                "use_cache, or call model.eval() first"
            )
        add_cache_layers(cache, ATTENTIONS * len(self.layers) + self.reads_past)
        return cache


@dataclass
class MuCausalLMOutput(CausalLMOutputWithPast):
    """As `CausalLMOutputWithPast`, with the further outputs of a MU model.

    Attributes:
        num_correct: right top-1 predictions among the labelled tokens, a scalar.
        sensitivities, entropies: as in `MuModelOutput`.
    """

    num_correct: Tensor | None = None
    sensitivities: tuple[Tensor, ...] | None = None
    entropies: tuple[Tensor, ...] | None = None

    if CACHE_NAME != "cache":
        cache = property(lambda self: self.past_key_values)


def _at_padding(mask: Tensor, shift_labels: Tensor) -> Tensor:
    """[B, T], true where a prediction is made at padding, or predicts it.

    Args:
        mask: [B, T or more], 1 at tokens and 0 at padding, cached tokens included.
    """
    real = mask[:, -shift_labels.shape[1] :] != 0
    return ~(real & F.pad(real[:, 1:], (0, 1), value=True))


class MuForCausalLM(MuPreTrainedModel, MuGenerationMixin):
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
        **kwargs: Unpack[LossInputs],
    ) -> MuCausalLMOutput:
        """Logits of the next token, or the loss, or both.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, use_cache, cache: as in `MuModel`.
            labels: [B, T], aligned with `input_ids` as everywhere in `transformers`: the shift by one happens here.
                Padding on either side counts for nothing: no label is at padding, and nothing is predicted from it.
            num_items_in_batch: divisor of the summed loss, as `Trainer` counts it over the micro-batches of a step;
                default: the number of labelled tokens. It may count labels at padding: their share is taken off.
                Where nothing is labelled, the loss is 0.
            skip_logits: compute only the loss, from chunks, and no logits. Default: in training with labels.
            logits_to_keep: compute the logits of only the last positions, so many, or 0 for all; or of these indices.
            kwargs: `shift_labels`, and which further outputs to return; see `LossInputs`.

        Returns:
            `loss` in nats a token, `logits` [B, T, V], `num_correct`, the cache; `hidden_states`, `sensitivities`
            and `entropies` if asked for.

        Raises:
            ValueError: as in `MuModel`, or labels are not of the shape [B, T].
            TypeError: there is no such argument.
        """
        refuse_unknown(self, kwargs, LossInputs.__optional_keys__)
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
            loss, num_correct = self._loss(hidden, shift_labels, attention_mask, num_items_in_batch)
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
            **named_cache(outputs.cache),
        )

    def _loss(
        self, hidden: Tensor, shift_labels: Tensor, mask: Tensor | None, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats divided by the number of items, and the number of right top-1 predictions."""
        labelled = counted = (shift_labels != IGNORE_INDEX).sum()
        if mask is not None and mask.dim() == 2:
            shift_labels = shift_labels.masked_fill(_at_padding(mask, shift_labels), IGNORE_INDEX)
            counted = (shift_labels != IGNORE_INDEX).sum()
        total, num_correct = self._summed_loss(hidden, shift_labels)
        items = counted
        if num_items is not None:
            items = torch.as_tensor(num_items, device=total.device) * (counted / labelled.clamp(min=1))
        return total / items.masked_fill(items == 0, 1), num_correct

    def _summed_loss(self, hidden: Tensor, shift_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats, and the number of right top-1 predictions."""
        head = self.lm_head
        if unchanged(head):
            return chunked_cross_entropy(hidden, head.weight, head.bias, shift_labels)
        # An adapter or a quantised layer has more to it than its weight.
        logits, targets = head(hidden).flatten(0, -2), shift_labels.flatten()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        return total, (logits.argmax(-1) == targets).sum()

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.lm_head
        if use_linear_kernel(hidden, head):
            return linear_of_one(hidden, head.weight, head.bias)
        return head(hidden)


# With label smoothing, `Trainer` shifts the labels by one only for classes in this mapping. Any other class would be
# trained to repeat its current token.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(MuConfig.model_type, MuForCausalLM.__name__)
