"""What the key/value cache brings, up to 512 tokens, and how a GPT-2 of the same size does with its own.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py --out docs/results/decoding.json

The preset `mu-sota` with random weights continues a prompt of 448 tokens by 64, greedily. All ways alternate, on one
thread. `generate` includes the pass over the prompt. `step` is a token, the mean of the last 8 one after the other, as
decoding goes; `first step` is one right after the pass over the 511 before it, when the processor's caches hold little
of what it needs. Both stand against a pass over all 512, with the compiled kernels, and in PyTorch's own
operations, as the model ran before them.
"""

import argparse
import statistics
from pathlib import Path

import torch
from side_by_side import LENGTH, VOCABULARY, gpt2, in_turn, median_ratio, mu, new_form, seconds
from transformers import GPT2LMHeadModel

from mu_sota import MuForCausalLM
from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.model.backend import plain_pytorch

PROMPT = 448
NEW = LENGTH - PROMPT


@torch.no_grad()
def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    ours, newer, theirs = mu().eval(), new_form().eval(), gpt2().eval()
    ids = torch.randint(4, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    prompt, texts = ids[:, :PROMPT], {}

    def generate(name: str, model: MuForCausalLM | GPT2LMHeadModel, use_cache: bool = True) -> None:
        how = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        texts[name] = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, **how)

    def step(model: MuForCausalLM | GPT2LMHeadModel, tokens: int) -> float:
        cache = model(ids[:, :-tokens], use_cache=True, logits_to_keep=1).past_key_values

        def rest() -> None:
            for token in ids[:, -tokens:].split(1, dim=1):
                model(token, past_key_values=cache, use_cache=True)

        return seconds(rest) / tokens

    def full() -> None:
        ours(ids, logits_to_keep=1)

    def full_in_pytorch() -> None:
        with plain_pytorch():
            full()

    whole = in_turn(
        {
            "cached": lambda: generate("cached", ours),
            "uncached": lambda: generate("uncached", ours, use_cache=False),
            "new form cached": lambda: generate("new form", newer),
            "gpt2 cached": lambda: generate("gpt2", theirs),
        },
        arguments.rounds,
    )
    assert torch.equal(texts["cached"], texts["uncached"])
    for warm_up in (lambda: step(ours, 1), lambda: step(newer, 1), lambda: step(theirs, 1), full, full_in_pytorch):
        warm_up()
    last: dict[str, dict[str, list[float]]] = {}
    for kind, tokens in {"step": 8, "first step": 1}.items():
        ways = ("cached", "uncached", "uncached in PyTorch", "new form cached", "gpt2 cached")
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3 * arguments.rounds):
            taken["cached"].append(step(ours, tokens))
            taken["uncached"].append(seconds(full))
            taken["uncached in PyTorch"].append(seconds(full_in_pytorch))
            taken["new form cached"].append(step(newer, tokens))
            taken["gpt2 cached"].append(step(theirs, tokens))
        last[kind] = taken

    ratios = {
        kind: {name: median_ratio(taken[name], taken["cached"]) for name in taken if name != "cached"}
        for kind, taken in {"generate": whole, **last}.items()
    }
    rate = NEW / statistics.median(whole["cached"])
    print(f"{NEW} tokens after {PROMPT}: {rate:.0f} tokens/s with the cache; times as long take:")
    for kind, of in ratios.items():
        print(f"  {kind}: " + ", ".join(f"{name} {ratio:.1f}" for name, ratio in of.items()))
    if arguments.out:
        write_json(
            arguments.out,
            {
                "what": "seconds, alternating, one thread; the texts with and without cache are equal",
                "command": f"python benchmarks/decoding.py --rounds {arguments.rounds}",
                "prompt": PROMPT,
                "new_tokens": NEW,
                "generate": whole,
                **last,
                "median_times_as_long_as_cached": ratios,
                "tokens_per_second_with_cache": rate,
                "machine": environment.describe(),
            },
        )


if __name__ == "__main__":
    main()
