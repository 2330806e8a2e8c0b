"""The table that `gpu.py` prints last: what was found beside what was aimed at."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .records import read_record


class Row(NamedTuple):
    """A line of the table: where its figure stands, and the two aims for it."""

    what: str
    stage: str
    part: str
    figure: str
    must: str = ""
    goal: str = ""


ROWS = (
    Row(
        "float32: error of the gradients", "right", "float32, kernels, without padding", "error_of_gradients", "< 0.001"
    ),
    Row("bf16: error of the loss", "right", "bfloat16, kernels, without padding", "error_of_loss", "< 0.01"),
    Row("leak check clean", "right", "leak check", "clean", "True"),
    Row("tests for CUDA", "right", "tests for CUDA", "summary"),
    Row("kernels in use", "recipe", "eager, kernels", "kernels_here", "Triton"),
    Row("a step, PyTorch alone, eager: s", "recipe", "eager, PyTorch alone", "seconds_a_step"),
    Row("a step, eager: s", "recipe", "eager, kernels", "seconds_a_step"),
    Row("a step, one CUDA graph: s", "recipe", "CUDA graph, kernels", "seconds_a_step", "0.046", "0.015"),
    Row("a step, layers compiled: s", "recipe", "compiled, kernels", "seconds_a_step"),
    Row("... its first step, compiling included: s", "recipe", "compiled, kernels", "first_step_seconds"),
    Row("peak memory at 32 x 512, compiled: GiB", "recipe", "compiled, kernels", "peak_memory_gib", "3.7", "1.9"),
    Row("the 5 epochs: s", "recipe", "the run: 5 epochs", "seconds_of_epochs", "60", "20"),
    Row("... validation perplexity", "recipe", "the run: 5 epochs", "perplexity"),
    Row("tokens a second over GPT-2, compiled", "beside", "layers compiled", "mu_over_gpt2", "2", "4"),
    Row("... GPT-2 compiled as a whole", "beside", "others compiled as a whole", "mu_over_gpt2"),
    Row("... GPT-2 with our loss", "beside", "layers compiled, our loss", "mu_over_gpt2, our loss"),
    Row("tokens a second over Llama, compiled", "beside", "layers compiled", "mu_over_llama"),
    Row("full pass over a cached token", "decoding", "1 at once", "full_over_cached", "10", "20"),
    Row("... generated, static cache", "decoding", "generate, static cache, mu", "full_over_a_token"),
)


def table(out: Path, stages: Iterable[str]) -> str:
    """All figures of `ROWS` that the records hold, and how many parts of each stage are done."""
    records = {stage: read_record(out / f"{stage}.json") for stage in stages}
    device = next((record["device"] for record in records.values() if record), "no device")
    lines = [f"On {device}:", f"{'':44} {'found':>12} {'must':>8} {'goal':>8}"]
    for row in ROWS:
        part = records.get(row.stage, {}).get("parts", {}).get(row.part, {})
        lines.append(f"{row.what:44} {_found(part, row.figure):>12} {row.must:>8} {row.goal:>8}")
    for stage, record in records.items():
        parts = record.get("parts", {})
        failed = [name for name, part in parts.items() if "error" in part]
        left_out = [name for name, part in parts.items() if "left_out" in part]
        lines.append(f"{stage}: {len(parts) - len(failed) - len(left_out)} parts done")
        lines += [f"  failed: {name}: {parts[name]['error'][:120]}" for name in failed]
        lines += [f"  no time for: {', '.join(left_out)}"] if left_out else []
    return "\n".join(lines)


def _found(part: dict[str, Any], figure: str) -> str:
    value = part.get(figure, "-")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
