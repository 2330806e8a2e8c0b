"""The sizes of the presets. It imports nothing, so that a wrong name is refused before PyTorch is loaded."""

from typing import Any

# What `docs/results/wikitext-2.md` found best; each field alone is in `docs/lab-notes.md`.
FORM: dict[str, Any] = {
    "position_encoding": "rotary",
    "norm_placement": "before",
    "pair_table_rows": 65_536,
    "induction_tables": 2,
}

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # The model of the run instructions: 26,946,256 parameters, in the form that they specify.
    "mu-sota": {},
    # For a laptop CPU: 5,9 M parameters, 5.0 M of them in tables.
    "quickstart": {"vocab_size": 4096, "num_hidden_layers": 6, "max_position_embeddings": 128, **FORM},
}
