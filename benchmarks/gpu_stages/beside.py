"""Tokens a second beside GPT-2 and Llama of as many parameters, each at its best, in turns."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from side_by_side import median_ratio

from mu_sota import MuForCausalLM

from .context import Context
from .steps import compile_options, in_turn, layers_of, new_model, sizes, training_step

OTHERS = ("gpt2", "llama")


def run(context: Context) -> None:
    """Uncompiled; with compiled layers; and two ways to spare GPT-2 and Llama their loss over whole logits."""
    ours = tuple(f"{name}, our loss" for name in OTHERS)
    context.part("eager", partial(side_by_side, context, OTHERS, as_it_is))
    context.part("layers compiled", partial(side_by_side, context, OTHERS, with_compiled_layers), least=60)
    context.part("layers compiled, our loss", partial(side_by_side, context, ours, with_compiled_layers), least=30)
    context.part("others compiled as a whole", partial(side_by_side, context, OTHERS, compiled_as_a_whole), least=40)


def as_it_is(context: Context, model: Any) -> None:
    """Not compiled."""


def with_compiled_layers(context: Context, model: Any) -> None:
    """As `mu-sota train` compiles."""
    for layer in layers_of(model):
        layer.compile(**compile_options(context))


def compiled_as_a_whole(context: Context, model: Any) -> None:
    """GPT-2 and Llama, whose loss over all logits is fused then; MU has its own, and compiled layers."""
    if isinstance(model, MuForCausalLM):
        with_compiled_layers(context, model)
    else:
        model.compile(**compile_options(context))


def side_by_side(context: Context, others: tuple[str, ...], prepare: Callable[[Context, Any], None]) -> dict[str, Any]:
    """Training steps with PyTorch's attention, taking turns; a model that does not run is left out."""
    torch.compiler.reset()
    batch, length = sizes(context)
    steps: dict[str, Callable[[], Any]] = {}
    figures: dict[str, Any] = {}
    for name in ("mu", *others):
        model = new_model(context, name)
        prepare(context, model)
        step = training_step(context, model, batch, length)
        try:
            step()
        except RuntimeError as error:
            figures[f"{name}_error"] = str(error)[:300]
        else:
            steps[name] = step
    taken = in_turn(context, steps)
    for name, seconds in taken.items():
        figures[f"{name}_tokens_a_second"] = batch * length / statistics.median(seconds)
    for name in others:
        if name in taken and "mu" in taken:
            figures[f"mu_over_{name}"] = median_ratio(taken[name], taken["mu"])
    return figures | {"seconds": taken}
