"""What the benchmarks share: the models compared, and timing in turn."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.model.presets import FORM

VOCABULARY, LENGTH = 50_000, 512


def mu(**overrides: Any) -> MuForCausalLM:
    """The preset `mu-sota`: 26,946,256 parameters."""
    torch.manual_seed(0)
    return MuForCausalLM(MuConfig.from_preset("mu-sota", **overrides))


def new_form() -> MuForCausalLM:
    """The form of the other presets, in the sizes of `mu-sota`."""
    return mu(**FORM)


_TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 300}


def gpt2(tiny: bool = False) -> GPT2LMHeadModel:
    """The GPT-2 of `transformers` with as many parameters, 27,147,264; its own defaults otherwise."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": 18, "hidden_size": 256, "vocab_size": VOCABULARY} | (
        _TINY if tiny else {}
    )
    config = GPT2Config(**shape, n_head=4, n_positions=LENGTH, bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(config)


def llama(tiny: bool = False) -> LlamaForCausalLM:
    """The Llama of `transformers` with as many parameters, 27,038,976: tied embeddings, heads of 64."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": 18, "hidden_size": 256, "vocab_size": VOCABULARY} | (
        _TINY if tiny else {}
    )
    config = LlamaConfig(
        **shape,
        intermediate_size=688,
        num_attention_heads=shape["hidden_size"] // 64 or 1,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def training_step(
    model: nn.Module,
    batch: int,
    loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
    length: int = LENGTH,
    vocabulary: int = VOCABULARY,
) -> Callable[[], float]:
    """A function that takes one step of AdamW on random tokens [batch, length], and returns the loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(4, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        value = loss(ids) if loss else model(ids, labels=ids).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return step


def warnings_of(function: Callable[[], Any]) -> list[str]:
    """What a call warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, the functions taking turns: other work on the machine meets all of them alike.

    Each is called once before, untimed.
    """
    for function in functions.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    return taken


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of how many times as long `slow` took."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
