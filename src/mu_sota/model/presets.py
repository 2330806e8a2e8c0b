"""The sizes of the presets. It imports nothing, so that a wrong name is refused before PyTorch is loaded."""

from typing import Any

# The first four: what `docs/results/wikitext-2.md` found best; each field alone is in `docs/lab-notes.md`.
FORM: dict[str, Any] = {
    "position_encoding": "rotary",
    "norm_placement": "before",
    "pair_table_rows": 65_536,
    "induction_tables": 2,
    "block_inputs": "by_name",
}

_LAPTOP: dict[str, Any] = {
    "vocab_size": 4096,
    "num_hidden_layers": 6,
    "max_position_embeddings": 128,
    "dropout": 0.2,
    **FORM,
}

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # The model of the run instructions: 26,946,256 parameters, in the form that they specify.
    "mu-sota": {},
    # For a laptop CPU, in minutes: 6,006,592 parameters, 0.3 M of them in the layers. On `pydocs` validation perplexity
    # 80.42 after 5 epochs (docs/results/quickstart-pydocs-cpu).
    "quickstart": _LAPTOP,
    # The same model; its run settings teach blocks what they are named for. On tokenized WikiText-2, 15, 13 and 13 of
    # 16 blocks are the best at that, for 0.9 % more validation loss than quickstart's (docs/blocks.md).
    "legible": _LAPTOP,
    # Small enough to come with the package: 1,237,568 parameters, 2.5 MB in bfloat16. On `pydocs` 1.747 bits a byte
    # after 5 epochs, and 11 of 16 blocks are the best at what they are named for (docs/results/packaged-model.json).
    "pocket": {**_LAPTOP, "vocab_size": 2048, "dropout": 0.1, "pair_table_rows": 2700},
    # For a CPU and an hour, or a small GPU: 16,722,944 parameters, 1.5 M of them in the layers. On the tokenized
    # WikiText-2 validation perplexity 48.02 a token after 2 epochs (docs/results/mu-small-wikitext-2-cpu).
    "mu-small": {
        "vocab_size": 8192,
        "matrix_size": 12,
        "num_hidden_layers": 6,
        "num_attention_heads": 9,
        "intermediate_size": 576,
        "max_position_embeddings": 256,
        **FORM,
    },
    # For a GPU: 63,997,568 parameters, 9.7 M of them in the layers. Not trained yet.
    "mu-base": {
        "vocab_size": 16_384,
        "matrix_size": 16,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "intermediate_size": 1024,
        **FORM,
        "pair_table_rows": 131_072,
    },
}
