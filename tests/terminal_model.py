"""A small model for the terminal session, and its text as the session prints it."""

import unicodedata
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.settings.sampling import Generation

CORPUS = "the state of a block keeps what the model reads and writes\n" * 20
FEW = Generation(max_new_tokens=6)


def small(tokenizer: PreTrainedTokenizerFast, positions: int) -> MuForCausalLM:
    """A model that never ends a text, and whose every token depends on the text and the seed."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 1}
    model = MuForCausalLM(MuConfig.from_preset("quickstart", max_position_embeddings=positions, **sizes))
    with torch.no_grad():
        model.lm_head.bias[tokenizer.all_special_ids] = -1e4
    return model.eval()


def shown(text: str) -> str:
    """As the session prints a text that the model may have put characters without a shape into."""
    return "".join(_code(c) if unicodedata.category(c) in _WITHOUT_SHAPE and c not in "\n\t" else c for c in text)


_WITHOUT_SHAPE = ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
