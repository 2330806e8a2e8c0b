"""The package's cross-entropy in chunks beside `torch.nn.functional.linear_cross_entropy` of PyTorch 2.13.

    OMP_NUM_THREADS=1 python benchmarks/cross_entropy.py --out docs/results/cross-entropy.json

Loss and gradients for hidden states of the presets' width and the vocabulary of `mu-sota`, in turns. The library's
function does not count right predictions, which ours does in the same pass.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.model.backend import plain_pytorch
from mu_sota.model.loss import chunked_cross_entropy

TOKENS, SIZE, VOCABULARY = 4096, 64, 50_000


def _ours(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return chunked_cross_entropy(hidden, weight, bias, labels)[0]


def _library(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, reduction="sum", options=options)


# "chunks" is what runs on a GPU, or without a compiler.
WAYS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "kernel": (_ours, True),
    "chunks": (_ours, False),
    "library": (_library, False),
}


def step(name: str) -> tuple[float, float]:
    """Seconds and loss of one forward and backward pass."""
    way, kernels = WAYS[name]
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, SIZE, generator=generator) for rows in (TOKENS, VOCABULARY))
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight * 0.02, torch.zeros(VOCABULARY))]
    with nullcontext() if kernels else plain_pytorch():
        start = time.perf_counter()
        loss = way(*inputs, labels)
        loss.backward()
        return time.perf_counter() - start, loss.item()


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    losses = {name: step(name)[1] for name in WAYS}
    rounds = [{name: step(name)[0] for name in WAYS} for _ in range(arguments.rounds)]
    ratios = {name: statistics.median(one["library"] / one[name] for one in rounds) for name in ("kernel", "chunks")}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} times as fast as the library's function (above 1: faster)")
    print(f"losses: {losses}")
    write_json(
        arguments.out,
        {
            "what": "seconds of cross-entropy with gradients, in turns",
            "sizes": {"tokens": TOKENS, "size": SIZE, "vocabulary": VOCABULARY},
            "speed_over_library": ratios,
            "losses": losses,
            "rounds": rounds,
            "machine": environment.describe(),
        },
    )


if __name__ == "__main__":
    main()
