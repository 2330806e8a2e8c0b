"""Time and memory of a training step against batch and length."""

from functools import partial
from typing import Any

from .context import Context
from .steps import new_model, peak_memory_of, seconds_of, sizes, training_step


def run(context: Context) -> None:
    """One size changed at a time, uncompiled: each shape would be compiled anew."""
    batch, length = sizes(context)
    for factor in (0.25, 0.5, 1, 2, 4):
        here = int(batch * factor) or 1
        context.part(f"batch {here}", partial(step_of, context, here, length))
    for factor in (0.25, 0.5, 2, 4):
        here = int(length * factor)
        context.part(f"length {here}", partial(step_of, context, batch, here))


def step_of(context: Context, batch: int, length: int) -> dict[str, Any]:
    """Seconds and memory."""
    step = training_step(context, new_model(context, max_position_embeddings=length), batch, length)
    seconds = seconds_of(context, step, budget=1.5)["median"]
    memory = peak_memory_of(context, step)
    return {
        "seconds_a_step": seconds,
        "tokens_a_second": batch * length / seconds,
        "peak_memory_gib": None if memory is None else memory / 2**30,
    }
