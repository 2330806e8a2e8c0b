"""Does `torch.compile` of the layers make training on a CPU faster, with the compiled kernels and without?

    python benchmarks/compilation.py --out docs/results/compilation-cpu.json

The 24 layers are compiled one by one (they share their code, so it is compiled once), the rest is not. Steps of the
preset `mu-sota` at 8 x 512 tokens alternate with those of the uncompiled model; the first step shows what compiling
takes.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from side_by_side import in_turn, median_ratio, mu, seconds, training_step

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.model.backend import plain_pytorch

BATCH = 8


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    backends: dict[str, Callable[[], AbstractContextManager[None]]]
    backends = {"with kernels": nullcontext, "without": plain_pytorch}
    for name, how in backends.items():
        torch.compiler.reset()  # or the second would run what was compiled for the first
        compiled = mu()
        for layer in compiled.model.layers:
            layer.compile()
        with how():
            steps = {"eager": training_step(mu(), BATCH), "compiled": training_step(compiled, BATCH)}
            first = seconds(steps["compiled"])
            taken = in_turn(steps, arguments.rounds)
        ratio = median_ratio(taken["eager"], taken["compiled"])
        results[name] = {"first_step": first, "seconds": taken, "speed_of_compiled_over_eager": ratio}
        print(
            f"{name}: compiled is {ratio:.2f} times as fast; its first step takes {first:.0f} s, "
            f"then {statistics.median(taken['compiled']):.2f}",
            flush=True,
        )
    if arguments.out:
        record = {
            "what": f"seconds of training steps at {BATCH} x 512 tokens, alternating",
            "command": f"python benchmarks/compilation.py --rounds {arguments.rounds}",
            **results,
            "machine": environment.describe(),
        }
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
