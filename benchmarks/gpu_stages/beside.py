"""Tokens a second beside GPT-2 and Llama of as many parameters, each at its best, in turns."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from side_by_side import median_ratio

from .context import Context
from .steps import in_turn, layers_of, new_model, sizes, training_step

OTHERS = ("gpt2", "llama")


def run(context: Context) -> None:
    """Uncompiled, with compiled layers, and the whole of each model compiled."""
    context.part("eager", partial(side_by_side, context, lambda model: model))
    context.part("layers compiled", partial(side_by_side, context, _with_compiled_layers), least=40)
    context.part("others compiled as a whole", partial(side_by_side, context, _compiled_as_a_whole), least=40)


def _with_compiled_layers(model: Any) -> Any:
    for layer in layers_of(model):
        layer.compile()
    return model


def _compiled_as_a_whole(model: Any) -> Any:
    """GPT-2 and Llama, whose loss over all logits is fused then; MU has its own, and compiled layers."""
    if type(model).__name__ == "MuForCausalLM":
        return _with_compiled_layers(model)
    model.compile()
    return model


def side_by_side(context: Context, prepare: Callable[[Any], Any]) -> dict[str, Any]:
    """Training steps with PyTorch's attention, taking turns; a model that does not run is left out."""
    torch.compiler.reset()
    batch, length = sizes(context)
    steps: dict[str, Callable[[], Any]] = {}
    figures: dict[str, Any] = {}
    for name in ("mu", *OTHERS):
        step = training_step(context, prepare(new_model(context, name)), batch, length)
        try:
            step()
        except RuntimeError as error:
            figures[f"{name}_error"] = str(error)[:300]
        else:
            steps[name] = step
    taken = in_turn(context, steps)
    for name, seconds in taken.items():
        figures[f"{name}_tokens_a_second"] = batch * length / statistics.median(seconds)
    for name in OTHERS:
        if name in taken and "mu" in taken:
            figures[f"mu_over_{name}"] = median_ratio(taken[name], taken["mu"])
    return figures | {"seconds": taken}
