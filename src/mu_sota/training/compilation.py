"""`torch.compile` of the layers, switched on and off.

It is left to a setting: on 2 CPU cores it gains nothing (docs/results/compilation-cpu.json), and on an H200, where the
launches of kernels are what a step waits for, it made a step longer (docs/results/gpu/recipe.json).

The layers share their code, so they are compiled together, once: for training on full micro-batches. Whatever else goes
through them (the smaller last batch, evaluation, samples) runs uncompiled, since each further shape would be compiled
anew.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from mu_sota.common.environment import autocast, is_out_of_memory


def compile_layers(model: Any, micro_batch_size: int, window: int, precision: str) -> str:
    """Compile the layers of a `MuForCausalLM`, and try them on one micro-batch.

    Weights, gradients and random numbers are afterwards as they were.

    Returns:
        Why the layers are left uncompiled, or nothing.
    """
    device = model.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            ids = torch.randint(model.config.vocab_size, (micro_batch_size, window), device=device)
            with autocast(device, precision):
                model.train()(ids[:1], labels=ids[:1])  # what is checked at first use is not checked by the compiler
                for layer in model.model.layers:
                    layer.compile(dynamic=False)  # or a second model, of another size, would get code for all sizes
                loss = model(ids, labels=ids).loss
            loss.backward()
    except Exception as error:  # of PyTorch's compiler, of Triton, of a C++ compiler
        if is_out_of_memory(error):
            raise
        for layer in model.model.layers:
            layer._compiled_call_impl = None
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        nn.Module.zero_grad(model, set_to_none=True)
    return ""


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, compiled layers run as if they were not."""
    return torch.compiler.set_stance("force_eager")
