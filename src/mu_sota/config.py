"""`MuConfig`: everything that fixes the shape of a MU model."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .errors import InputError
from .layout import GRID, NUM_BLOCKS

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # The model of the run instructions: 26,946,256 parameters.
    "mu-sota": {},
    # The same architecture for a laptop CPU.
    "quickstart": {"vocab_size": 4096, "num_hidden_layers": 6, "max_position_embeddings": 128},
}


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
        max_position_embeddings: learned positions, the longest sequence the model takes.
        dropout: probability in the feed-forward and the sensitivity network, in training.
        layer_norm_eps: epsilon of every LayerNorm.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a value is of the wrong type or out of range; the message names it.
            `from_preset` raises an InputError instead, and refuses unknown fields too.
    """

    model_type = "mu_sota"

    vocab_size: int = 50_000
    matrix_size: int = 8
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    intermediate_size: int = 256
    max_position_embeddings: int = 512
    dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "MuConfig":
        """The configuration of a preset, some of its fields replaced.

        Raises:
            InputError: there is no preset of that name, no such field, or a value is unusable.
        """
        if name not in MODEL_PRESETS:
            raise InputError(f"no preset is named {name!r}; choose one of: {', '.join(MODEL_PRESETS)}")
        for field in overrides:
            if not hasattr(cls, field):
                raise InputError(f"MuConfig has no field {field!r}; its own are: {', '.join(cls.__annotations__)}")
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

    def validate_architecture(self) -> None:
        """Part of the validation that runs on construction."""
        sizes = ("vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in (*sizes, "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.matrix_size < GRID or self.matrix_size % GRID:
            raise ValueError(
                f"matrix_size is {self.matrix_size}, but the 4 x 4 grid of blocks needs a multiple of 4, as 8 or 16"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, but must divide the {self.hidden_size} values "
                f"of a {self.matrix_size} x {self.matrix_size} state"
            )
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps is {self.layer_norm_eps}, but must be above 0")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is True, but a MU model's output projection is not tied")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and less than 1")
