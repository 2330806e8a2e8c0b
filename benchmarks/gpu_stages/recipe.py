"""A training step of the recipe in every form, and the 5 epochs of the run instructions in the best one."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import median_ratio

from mu_sota.common.files import write_json
from mu_sota.model.attention import causal_attention, causal_attention_with_entropy
from mu_sota.model.kernels import fused_attention
from mu_sota.settings.load import load_settings
from mu_sota.training import train

from .context import Context
from .steps import (
    HOW,
    WITHOUT,
    compile_options,
    in_turn,
    new_model,
    peak_memory_of,
    profile,
    seconds_of,
    sizes,
    training_step,
    waits_of,
)

STEPS = 1310  # 5 epochs of 262


def run(context: Context) -> None:
    """Steps first: their figures are wanted even if the run does not come to its end."""
    context.part("eager, kernels", partial(step_figures, context, "kernels"))
    context.part("CUDA graph, kernels", partial(step_figures, context, "kernels", graphed=True))
    new_form = partial(step_figures, context, "kernels", graphed=True, name="new form")
    context.part("CUDA graph, kernels, new form", new_form)
    context.part("eager, PyTorch alone", partial(step_figures, context, "PyTorch alone"))
    context.part(
        "compiled, kernels", partial(step_figures, context, "kernels", compiled=compile_options(context)), least=60
    )
    context.part("the run: 5 epochs", partial(whole_run, context), least=60)
    context.part("eager, kernels, new form", partial(step_figures, context, "kernels", name="new form"))
    context.part("attention alone", partial(attention_alone, context), least=15)
    context.part("tiles of the attention kernel", partial(tiles, context), least=25)
    for path, switch in WITHOUT.items():
        context.part(f"eager, without the {path}", partial(step_figures, context, "kernels", switch))
    context.part(
        "compiled, PyTorch alone",
        partial(step_figures, context, "PyTorch alone", compiled=compile_options(context)),
        least=60,
    )
    graphs = compile_options(context, mode="reduce-overhead")
    context.part("compiled, CUDA graphs", partial(step_figures, context, "kernels", compiled=graphs), least=60)


def step_figures(
    context: Context,
    how: str,
    switch: Callable[[], Any] | None = None,
    compiled: dict[str, Any] | None = None,
    name: str = "mu",
    graphed: bool = False,
) -> dict[str, Any]:
    """Seconds, memory, kernels and waits of a step; `compiled` holds options of `torch.compile`."""
    torch.compiler.reset()
    batch, length = sizes(context)
    with HOW[how](), switch() if switch else HOW["kernels"]():
        model = new_model(context, name)
        if compiled is not None:
            for layer in model.model.layers:
                layer.compile(**compiled)
        step = training_step(context, model, batch, length, graphed)
        taken = seconds_of(context, step)
        memory = peak_memory_of(context, step)
        loss = float(step())
        return {
            "seconds_a_step": taken["median"],
            "first_step_seconds": taken["first"],
            "tokens_a_second": batch * length / taken["median"],
            "projected_5_epochs_seconds": STEPS * taken["median"],
            "peak_memory_gib": None if memory is None else memory / 2**30,
            "loss_after_a_few_steps": loss,
            "waits": waits_of(context, step),
            "profile": profile(context, step),
        }


def attention_alone(context: Context) -> dict[str, Any]:
    """Forward and backward of both attentions of a layer: the kernel against PyTorch's fused attention, in turns."""
    batch, length = sizes(context)
    figures: dict[str, Any] = {}
    for name, heads, size in (("16 heads of 4", 16, 4), ("8 heads of 8", 8, 8)):
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(batch, length, 3, heads, size, generator=generator)
        qkv = qkv.to(context.device, torch.float32 if context.tiny else context.half).requires_grad_()

        def kernel(qkv: torch.Tensor = qkv) -> None:
            output, entropy, _ = fused_attention(qkv)
            torch.autograd.grad(output.float().sum() + entropy.sum(), qkv)

        def pytorch(qkv: torch.Tensor = qkv, with_entropy: bool = heads == 8) -> None:
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            if with_entropy:
                output, entropy = causal_attention_with_entropy(query, key, value, None)
                total = output.float().sum() + entropy.sum()
            else:  # the blocks' own attention has no use for it
                total = causal_attention(query, key, value, None).float().sum()
            torch.autograd.grad(total, qkv)

        taken = in_turn(context, {"kernel": kernel, "PyTorch": pytorch}, budget=2)
        figures[f"PyTorch_over_kernel_{name.replace(' ', '_')}"] = median_ratio(taken["PyTorch"], taken["kernel"])
        figures[name] = taken
    return figures


def tiles(context: Context) -> dict[str, Any]:
    """Seconds of the attention kernel, forward and backward, by the size of its tiles and its warps."""
    if context.tiny:
        return {"left_out_on_a_cpu": "there are no tiles"}
    from mu_sota.model import triton_kernels as kernels

    batch, length = sizes(context)
    figures: dict[str, Any] = {}
    usual = kernels._ROWS, kernels._KEYS, kernels._WARPS
    qkv = torch.randn(batch, length, 3, 16, 4, device=context.device, dtype=context.half)
    for tile in ((64, 64, 4), (128, 64, 4), (64, 128, 4), (128, 128, 8), (128, 64, 8), (32, 64, 2), (64, 32, 2)):
        kernels._ROWS, kernels._KEYS, kernels._WARPS = tile
        try:

            def both() -> None:
                output, entropy, log_sum = kernels.attention(qkv)
                kernels.attention_backward(output, entropy, qkv, output, entropy, log_sum)

            figures["x".join(map(str, tile))] = seconds_of(context, both, budget=0.5)["median"]
        except Exception as error:  # too much shared memory, say
            figures["x".join(map(str, tile))] = f"{type(error).__name__}: {error}"[:200]
        finally:
            kernels._ROWS, kernels._KEYS, kernels._WARPS = usual
    return figures


def tiny_settings(context: Context) -> dict[str, Any]:
    """Settings of a training that takes a moment; the vocabulary of prepared tokens is what it is."""
    if not context.tiny:
        return {}
    prepared = (Path(context.data) / "train.npy").exists()
    settings = {"num_hidden_layers": 1, "window": 32, "stride": 32, "max_steps": 3}
    return settings | ({} if prepared else {"vocab_size": 300})


def whole_run(context: Context) -> dict[str, Any]:
    """`mu-sota train` with the recipe, layers compiled if that is faster in all; metrics and samples are kept."""
    eager, compiled = (context.parts.get(name, {}) for name in ("eager, kernels", "compiled, kernels"))
    in_all = [
        STEPS * part["seconds_a_step"] + part["first_step_seconds"] for part in (eager, compiled) if "waits" in part
    ]
    choice = "always" if len(in_all) == 2 and in_all[1] < in_all[0] else "never"
    overrides: dict[str, Any] = {"compile": choice, "trackers": []}
    overrides |= tiny_settings(context)
    torch.compiler.reset()  # or compiling, which a part before has done, would cost nothing here
    folder = Path(tempfile.mkdtemp())
    try:
        start = time.monotonic()
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        train("mu-sota", context.data, folder / "run", load_settings("mu-sota", None, overrides))
        seconds = time.monotonic() - start
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
        run_record = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    finally:
        shutil.rmtree(folder)
    write_json(context.out / "recipe-run.json", {"run": run_record, "metrics": rows})
    epochs = [row for row in rows if row["kind"] == "epoch"]
    return {
        "compile": choice,
        "seconds_with_everything": seconds,
        "seconds_of_epochs": sum(row["seconds"] for row in epochs),
        "epochs": len(epochs),
        "perplexity": run_record["result"]["best"]["validation"]["perplexity"],
        "bits_per_byte": run_record["result"]["best"]["validation"]["bits_per_byte"],
        "peak_memory_gib": run_record["result"]["peak_memory_bytes"] / 2**30,
    }
