"""Is bfloat16 autocast faster than float32 on this CPU? A training step of the preset `mu-sota`, alternating.

    python benchmarks/cpu_precision.py --out docs/results/cpu-precision.json

Prints and records the median ratio of CPU seconds (of all threads, so that other work on the machine counts less).
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from side_by_side import mu

from mu_sota.common import environment
from mu_sota.common.files import write_json


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 512 tokens")
    arguments = parser.parse_args()

    model = mu()
    ids = torch.randint(model.config.vocab_size, (arguments.batch, 513))

    def step(bf16: bool) -> float:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:]).loss
        loss.backward()
        model.zero_grad()
        return time.process_time() - start

    step(False), step(True)
    pairs = [(step(False), step(True)) for _ in range(arguments.rounds)]
    ratio = statistics.median(fp32 / bf16 for fp32, bf16 in pairs)
    print(f"bfloat16 autocast is {ratio:.2f} times as fast as float32 (above 1: faster)")
    write_json(
        arguments.out,
        {
            "what": "CPU seconds of a training step, (float32, bfloat16 autocast), alternating",
            "batch": arguments.batch,
            "pairs": pairs,
            "median_speed_of_bf16_over_fp32": ratio,
            "machine": environment.describe(),
        },
    )


if __name__ == "__main__":
    main()
