"""The presets: what each sets for run and model. All else is as `RunSettings` and `MuConfig` have it."""

from typing import Any

DEFAULT_PRESET = "quickstart"
"""Of every command: what a laptop trains in minutes."""

_LAPTOP: dict[str, Any] = {
    "batch_size": 16,
    "learning_rate": 3e-3,
    "warmup_steps": 200,
    "window": 128,
    "stride": 128,
}

RUN_PRESETS: dict[str, dict[str, Any]] = {
    "mu-sota": {},
    "quickstart": _LAPTOP,
    "legible": {**_LAPTOP, "grounding": 0.4},
    "pocket": {**_LAPTOP, "learning_rate": 5e-3, "weight_decay": 0.1, "grounding": 0.4},
    "mu-small": {
        "batch_size": 16,
        "learning_rate": 5e-3,
        "warmup_steps": 200,
        "weight_decay": 0.1,
        "window": 256,
        "stride": 256,
    },
    "mu-base": {"learning_rate": 2e-3, "weight_decay": 0.1, "stride": 512},
}

MODEL_KEYS = (
    "vocab_size",
    "matrix_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "dropout",
    "layer_norm_eps",
    "position_encoding",
    "norm_placement",
    "pair_table_rows",
    "induction_tables",
    "block_inputs",
)
