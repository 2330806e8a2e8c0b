"""Training on a CPU: tokens per second beside the reference implementation and a GPT-2 of the same size; what each
kernel brings; peak memory.

    python benchmarks/training.py --out docs/results/training-cpu.json

Each model runs at its own best batch size, found first; then steps alternate. A step is forward, backward and AdamW on
sequences of 512 random tokens in float32. Memory (on Linux) is the peak resident set of a fresh process less what it
held before its first step: gradients and the optimizer's state are in it, weights are not.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
import torch.nn.functional as F
from side_by_side import LENGTH, VOCABULARY, gpt2, in_turn, median_ratio, mu, new_form, seconds, training_step
from torch import Tensor
from transformers import PreTrainedModel

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.model import layers as layers_module
from mu_sota.model import loss as loss_module
from mu_sota.model.attention import causal_attention, causal_attention_with_entropy, rotated
from mu_sota.model.backend import plain_pytorch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import ReferenceMu

BATCHES = {"mu": (8, 16, 32), "new form": (8, 16, 32), "reference": (1, 2), "gpt2": (1, 2, 4)}


def step_of(name: str, batch: int) -> Callable[[], float]:
    """A training step of one of the models."""
    if name == "reference":
        reference = ReferenceMu(VOCABULARY, 8, 24, 8, 256, LENGTH, dropout=0.1)

        def loss(ids: Tensor) -> Tensor:
            logits = reference(ids).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

        return training_step(reference, batch, loss)
    models: dict[str, Callable[[], PreTrainedModel]] = {"mu": mu, "new form": new_form, "gpt2": gpt2}
    return training_step(models[name](), batch)


def best_batch(name: str) -> tuple[int, dict[int, float]]:
    """The batch size of the most tokens per second, and the rates of all that were tried."""
    rates = {}
    for batch in BATCHES[name]:
        step = step_of(name, batch)
        step()
        rates[batch] = batch * LENGTH / min(seconds(step) for _ in range(3))
        print(f"  {name}, {batch} at once: {rates[batch]:,.0f} tokens/s", flush=True)
    return max(rates, key=lambda batch: rates[batch]), rates


def speed(rounds: int) -> dict[str, Any]:
    """The three models in turn."""
    tried = {name: best_batch(name) for name in BATCHES}
    steps = {name: step_of(name, batch) for name, (batch, _) in tried.items()}
    taken = in_turn(steps, rounds)
    per_token = {name: [s / (tried[name][0] * LENGTH) for s in times] for name, times in taken.items()}
    result: dict[str, Any] = {
        "batch": {name: batch for name, (batch, _) in tried.items()},
        "tried": {name: rates for name, (_, rates) in tried.items()},
        "seconds": taken,
        "tokens_per_second": {name: 1 / statistics.median(times) for name, times in per_token.items()},
        "mu_over_reference": median_ratio(per_token["reference"], per_token["mu"]),
        "mu_over_gpt2": median_ratio(per_token["gpt2"], per_token["mu"]),
        "new_form_over_mu": median_ratio(per_token["mu"], per_token["new form"]),
    }
    for name, rate in result["tokens_per_second"].items():
        print(f"{name}: {rate:,.0f} tokens/s at {result['batch'][name]} at once")
    print(f"mu is {result['mu_over_reference']:.1f} times the reference, {result['mu_over_gpt2']:.1f} times GPT-2")
    print(f"the new form is {result['new_form_over_mu']:.2f} times as fast as mu\n")
    return result


# What each kernel replaces, in PyTorch.


def _attention(heads: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, None]:
    heads = heads if turns is None else rotated(heads, turns)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    mixed, entropy = causal_attention_with_entropy(query, key, value, None)
    return mixed.transpose(1, 2), entropy, None


def _block_attention(
    blocks: Tensor, qkv: Tensor, qkv_bias: Tensor, out: Tensor, out_bias: Tensor, turns: Tensor | None
) -> tuple[Tensor]:
    heads = (torch.einsum("btni,noi->btno", blocks, qkv) + qkv_bias).unflatten(-1, (3, -1)).transpose(2, 3)
    heads = heads if turns is None else rotated(heads, turns)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    mixed = causal_attention(query, key, value, None).transpose(1, 2)
    return (torch.einsum("btni,noi->btno", mixed, out) + out_bias,)


def _feed_forward(
    state: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, dropout: float, seed: Tensor
) -> Tensor:
    return F.linear(F.dropout(F.gelu(F.linear(state, up, up_bias)), dropout), down, down_bias)


# PyTorch's operations in the place of one kernel, or of all.
WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "block attention": lambda: mock.patch.object(layers_module, "fused_block_attention", _block_attention),
    "attention": lambda: mock.patch.object(layers_module, "fused_attention", _attention),
    "feed-forward": lambda: mock.patch.object(layers_module, "fused_feed_forward", _feed_forward),
    "cross-entropy": lambda: mock.patch.object(loss_module, "use_cross_entropy_kernel", return_value=False),
    "all": plain_pytorch,
}


def changes(batch: int, rounds: int) -> dict[str, Any]:
    """A step with all kernels, and without each."""
    step = training_step(mu(), batch)

    def leaving_out(kernel: str) -> Callable[[], None]:
        def run() -> None:
            with WITHOUT[kernel]():
                step()

        return run

    taken = in_turn({"with all": step, **{name: leaving_out(name) for name in WITHOUT}}, rounds)
    ratios = {name: median_ratio(taken[name], taken["with all"]) for name in WITHOUT}
    for name, ratio in ratios.items():
        print(f"without the kernel for {name}: {ratio:.2f} times as long")

    foreach = mu()
    ids = torch.randint(4, VOCABULARY, (1, 8))
    foreach(ids, labels=ids).loss.backward()
    for parameter in foreach.parameters():
        parameter.grad = torch.randn_like(parameter)
    fused = torch.optim.AdamW(foreach.parameters(), fused=True)
    loop = torch.optim.AdamW(foreach.parameters(), foreach=True)
    adamw = in_turn({"fused": fused.step, "foreach": loop.step}, rounds)
    print(f"AdamW: foreach takes {median_ratio(adamw['foreach'], adamw['fused']):.1f} times as long as fused\n")
    return {"batch": batch, "seconds": taken, "times_as_long_without": ratios, "adamw_seconds": adamw}


def memory_of_a_step(batch: int) -> None:
    """Print the peak of two training steps in this process, in bytes."""
    step = training_step(mu(), batch)
    start = psutil.Process().memory_info().rss
    step(), step()
    # Of this process alone: getrusage also remembers what the parent held.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(int(peak[1]) * 1024 - start)


def memory(batch: int) -> dict[str, Any]:
    """In processes of their own, with the kernels and without."""
    result = {}
    for name, switch in {"with kernels": "1", "without": "0"}.items():
        command = [sys.executable, __file__, "--memory-of", str(batch)]
        environment = os.environ | {"MU_SOTA_KERNELS": switch}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        result[name] = int(done.stdout)
        print(f"peak memory of a step at {batch} x {LENGTH}, {name}: {result[name] / 2**30:.2f} GiB")
    return {"batch": batch, "bytes": result}


def matmul_gflops() -> float:
    """What PyTorch's product of two large matrices reaches here: 10^9 floating-point operations a second."""
    left, right = torch.randn(2, 2048, 2048).unbind()
    return 2 * 2048**3 / min(seconds(lambda: left @ right) for _ in range(10)) / 1e9


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory_of_a_step(arguments.memory_of)
        return
    record = {
        "what": "training steps in float32, alternating; see the script",
        "command": f"python benchmarks/training.py --rounds {arguments.rounds}",
        "matmul_gflops": matmul_gflops(),
        "speed": speed(arguments.rounds),
        "changes": changes(8, max(arguments.rounds // 2, 1)),
        "memory": memory(32),
        "machine": environment.describe(),
    }
    if arguments.out:
        write_json(arguments.out, record)
    else:
        print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
