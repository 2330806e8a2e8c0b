"""What the key/value cache brings: tokens per second of greedy decoding up to 512 tokens, with it and without.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py --out docs/results/decoding.json

The preset `mu-sota` with random weights continues a prompt of 448 tokens by 64. Both ways alternate; the ratios are of
seconds of CPU time, so that other work on the machine counts less. `generate` includes the pass over the prompt; `step`
is the last token alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mu_sota import MuConfig, MuForCausalLM, machine
from mu_sota.files import write_json

PROMPT, NEW = 448, 64


def seconds(function: Callable[[], Any]) -> float:
    """CPU time of a call, all threads together."""
    start = time.process_time()
    function()
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = MuForCausalLM(MuConfig.from_preset("mu-sota")).eval()
    ids = torch.randint(4, model.config.vocab_size, (1, PROMPT + NEW))
    prompt = ids[:, :PROMPT]
    texts = {}

    def generate(use_cache: bool) -> None:
        how = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "use_cache": use_cache}
        texts[use_cache] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)

    def step(use_cache: bool) -> float:
        if not use_cache:
            return seconds(lambda: model(ids, logits_to_keep=1))
        cache = model(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        return seconds(lambda: model(ids[:, -1:], past_key_values=cache))

    generate(True), step(True)
    whole = [[seconds(lambda use=use: generate(use)) for use in (True, False)] for _ in range(arguments.rounds)]
    last = [[step(use) for use in (True, False)] for _ in range(arguments.rounds)]
    assert torch.equal(texts[True], texts[False])
    ratios = {
        name: statistics.median(uncached / cached for cached, uncached in pairs)
        for name, pairs in {"generate": whole, "step": last}.items()
    }
    rate = statistics.median(NEW / cached for cached, _ in whole)
    print(
        f"{NEW} tokens after {PROMPT}: {ratios['generate']:.1f} times as fast with the cache ({rate:.0f} tokens per "
        f"second of CPU time); the token at position {PROMPT + NEW} alone: {ratios['step']:.1f} times"
    )
    write_json(
        arguments.out,
        {
            "what": "CPU seconds, [with cache, without], alternating; the texts are equal",
            "command": f"python benchmarks/decoding.py --rounds {arguments.rounds}",
            "prompt": PROMPT,
            "new_tokens": NEW,
            "seed": 0,
            "generate": whole,
            "step": last,
            "median_ratio": ratios,
            "tokens_per_cpu_second_with_cache": rate,
            "machine": machine.describe(),
        },
    )


if __name__ == "__main__":
    main()
