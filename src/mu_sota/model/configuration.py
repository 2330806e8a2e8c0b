"""`MuConfig`: everything that fixes the shape of a MU model."""

from .versions import TRANSFORMERS  # noqa: F401  first: what an unsupported release lacks is imported below

# isort: split
import os
from dataclasses import fields
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.utils import logging

from .blocks import GRID, NUM_BLOCKS
from .errors import InputError, cut, suggestion
from .presets import MODEL_PRESETS

MOST_PARAMETERS, MOST_LAYERS = 10**11, 10_000
"""Beyond them a size is taken for a mistake: 373 GiB of weights in float32."""

SENSITIVITY_HIDDEN = 32
SOURCES_BY_TOKEN = ("C1", "C2", "G")
"""Blocks that receive rows of a table by token; see `sources.py`."""

# Beside the fields of `MuConfig` and of its base class: what the base class takes, and what a model can be asked for.
_MORE_FIELDS = {
    "model_type",
    *("auto_map", "attn_implementation", "experts_implementation", "name_or_path", "num_labels", "output_attentions"),
    *("quantization_config", "torch_dtype", "use_cache", "output_sensitivities", "output_entropies"),
}

logger = logging.get_logger(__name__)


def _no_such_field(name: str) -> str:
    if name in ("hidden_size", "block_size"):
        return f"MuConfig has no field {name!r} of its own: set matrix_size, whose square is the hidden size"
    own = MuConfig.__annotations__
    hint = suggestion(name, own) or f"its own are: {', '.join(own)}"
    return f"MuConfig has no field {name!r}; {hint}"


@strict
class MuConfig(PreTrainedConfig):
    """Configuration of a MU model. The defaults are the preset `mu-sota`.

    Args:
        vocab_size: entries of the tokenizer (V).
        matrix_size: side M of the state matrix, a multiple of 4; a token's state has D = M * M values, and each of the
            16 blocks M * M / 16 of them.
        num_hidden_layers: layers.
        num_attention_heads: heads of the cross-block attention; must divide D.
        intermediate_size: width of the feed-forward network.
        max_position_embeddings: the longest sequence that the model takes, and the number of learned positions.
        dropout: probability in the feed-forward and the sensitivity network, and of all that a token looks up, in
            training.
        layer_norm_eps: epsilon of every LayerNorm.
        position_encoding: `learned` positions in the embedding, or `rotary` ones in both attentions of every layer
            (Su et al. 2021, "RoFormer", arXiv:2104.09864); then `max_position_embeddings` only limits the length.
        norm_placement: LayerNorm `after` each part, as specified, or `before` it (Xiong et al. 2020, "On Layer
            Normalization in the Transformer Architecture", arXiv:2002.04745), where a layer adds to the state.
        pair_table_rows: rows of a table of hashed token pairs, whose row for the token and the one before is added to
            the embedding; 0 for none. See `lookups.py`.
        induction_tables: tables by token that are added to the embedding, too: table n has a row for the token that
            followed the latest earlier occurrence of the last n tokens.
        block_inputs: every block receives its part of the `token`; or four of them also, `by_name`, what they are named
            for: P the position, with a vector for each of `max_position_embeddings`, C1 the token before, C2 and G what
            was read so far. See `sources.py`.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a value is of the wrong type or out of range; the message names it.
            `from_preset` raises an InputError instead.
        TypeError: there is no such field. In a `config.json`, which may be of another version, it is a warning.
    """

    model_type = "mu_sota"
    # What `Trainer` leaves out of the predictions for `compute_metrics`.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "num_correct"]

    vocab_size: int = 50_000
    matrix_size: int = 8
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    intermediate_size: int = 256
    max_position_embeddings: int = 512
    dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    position_encoding: Literal["learned", "rotary"] = "learned"
    norm_placement: Literal["after", "before"] = "after"
    pair_table_rows: int = 0
    induction_tables: int = 0
    block_inputs: Literal["token", "by_name"] = "token"
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("dropout", "layer_norm_eps"):
            if isinstance(value := getattr(self, name), int) and abs(value) < 2**1023:
                setattr(self, name, float(value))
        from_file = "model_type" in kwargs
        for name in kwargs:
            if name in _MORE_FIELDS or (from_file and name.startswith("_")):
                continue
            sentence = _no_such_field(name)
            if not from_file:
                raise TypeError(sentence)
            logger.warning_once(f"{sentence}. It stands in the configuration, and has no effect")
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "MuConfig":
        """The configuration of a preset, some of its fields replaced.

        Raises:
            InputError: there is no preset of that name, no such field, or a value is unusable.
        """
        if name not in MODEL_PRESETS:
            raise InputError(f"no preset is named {name!r}; choose one of: {', '.join(MODEL_PRESETS)}")
        for key in overrides:
            if key not in _MORE_FIELDS and key not in {field.name for field in fields(cls)}:
                raise InputError(_no_such_field(key))
        try:
            return cls(**{**MODEL_PRESETS[name], **overrides})
        except StrictDataclassError as error:
            raise InputError(str(error.__cause__ or error)) from None

    @property
    def hidden_size(self) -> int:
        """D = M * M, the values of a token's state."""
        return self.matrix_size**2

    @property
    def block_size(self) -> int:
        """S = D / 16, the values of one block."""
        return self.hidden_size // NUM_BLOCKS

    @property
    def num_parameters(self) -> int:
        """Parameters of `MuForCausalLM` with these sizes, by arithmetic."""
        size, block, inner, layers = self.hidden_size, self.block_size, self.intermediate_size, self.num_hidden_layers
        features, hidden = NUM_BLOCKS + 1, SENSITIVITY_HIDDEN
        layer = (
            NUM_BLOCKS * (3 * block * (block + 1) + block * (block + 1))
            + (3 * size * (size + 1) + size * (size + 1))
            + (inner * (size + 1) + size * (inner + 1))
            + (6 if self.norm_placement == "before" else 4) * size  # norms
            + (NUM_BLOCKS**2 + hidden * (features + 1) + NUM_BLOCKS * (hidden + 1) + NUM_BLOCKS)
        )
        positions = self.max_position_embeddings if self.position_encoding == "learned" else 0
        by_token = self.vocab_size * ((1 + self.induction_tables) * size + layers * NUM_BLOCKS)
        tables = by_token + (positions + self.pair_table_rows) * size
        if self.block_inputs == "by_name":
            tables += (self.max_position_embeddings + len(SOURCES_BY_TOKEN) * self.vocab_size) * block
        return tables + layers * layer + 2 * size + self.vocab_size * (size + 1)

    def validate_architecture(self) -> None:
        """Part of the validation that runs on construction."""
        sizes = ("vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in (*sizes, "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {cut(str(getattr(self, name)))}, but must be at least 1")
        for name in ("pair_table_rows", "induction_tables"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {cut(str(getattr(self, name)))}, but must be 0, for no table, or more")
        if self.matrix_size < GRID or self.matrix_size % GRID:
            raise ValueError(
                f"matrix_size is {cut(str(self.matrix_size))}, but the 4 x 4 grid of blocks needs a multiple of 4, "
                f"as 8 or 16"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {cut(str(self.num_attention_heads))}, but must divide the "
                f"{self.hidden_size} values of a {self.matrix_size} x {self.matrix_size} state"
            )
        self._refuse_beyond_reason()
        if not 1e-37 <= self.layer_norm_eps <= 1e37:
            raise ValueError(
                f"layer_norm_eps is {cut(str(self.layer_norm_eps))}, but must be above 0 and fit into float32"
            )
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is True, but a MU model's output projection is not tied")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {cut(str(self.dropout))}, but must be at least 0 and less than 1")

    def _refuse_beyond_reason(self) -> None:
        """Before anything of that size is made."""
        if self.num_parameters <= MOST_PARAMETERS and self.num_hidden_layers <= MOST_LAYERS:
            return
        names = ("vocab_size", "matrix_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
        usual = {name: getattr(type(self), name) for name in names} | {"pair_table_rows": 2**16, "induction_tables": 2}
        largest = max(usual, key=lambda name: getattr(self, name) // usual[name])
        value, count, gibibytes = (
            cut(f"{number:,}") for number in (getattr(self, largest), self.num_parameters, self.num_parameters // 2**28)
        )
        raise ValueError(
            f"{largest} is {value}, with which the model would have {count} parameters and take {gibibytes} GiB in "
            f"float32; make it smaller (usual are {usual[largest]:,})"
        )


def refuse_beyond_memory(config: MuConfig) -> None:
    """Refuse a model too large for this machine before it is allocated; or the system would end the process later.

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
