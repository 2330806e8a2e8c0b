"""The sizes of the presets. It imports nothing, so that a wrong name is refused before PyTorch is loaded."""

from typing import Any

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # The model of the run instructions: 26,946,256 parameters.
    "mu-sota": {},
    # The same architecture for a laptop CPU.
    "quickstart": {"vocab_size": 4096, "num_hidden_layers": 6, "max_position_embeddings": 128},
}
