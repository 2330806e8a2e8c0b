"""How the cost of a training step grows with each size of the model, and where the time would have to go at least.

    python benchmarks/scaling.py --out docs/results/scaling-cpu.json --plots docs/images

Starting from the preset `mu-sota` with 8 sequences of 512 tokens, one size changes at a time. A point is the median of
a few steps (forward, backward, AdamW, float32). A plot each, time a step against the size.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from side_by_side import LENGTH, VOCABULARY, mu, seconds, training_step

from mu_sota.common import environment
from mu_sota.common.files import replacing, write_json

BATCH = 8
SIZES: dict[str, tuple[int, ...]] = {
    "sequence length": (64, 128, 256, 512, 1024, 2048),
    "batch": (1, 2, 4, 8, 16, 32),
    "layers": (3, 6, 12, 24, 48),
    "matrix size": (8, 12, 16, 24),
    "vocabulary": (1_000, 5_000, 10_000, 25_000, 50_000, 100_000),
}


def step_seconds(what: str, size: int, steps: int) -> float:
    """The median time of a training step with one size changed."""
    batch, length, vocabulary, overrides = BATCH, LENGTH, VOCABULARY, {}
    if what == "sequence length":
        length = size
        overrides = {"max_position_embeddings": size}
    elif what == "batch":
        batch = size
    elif what == "layers":
        overrides = {"num_hidden_layers": size}
    elif what == "matrix size":
        overrides = {"matrix_size": size, "intermediate_size": 4 * size * size}
    else:
        vocabulary = size
        overrides = {"vocab_size": size}
    step = training_step(mu(**overrides), batch, length=length, vocabulary=vocabulary)
    step()
    return statistics.median(seconds(step) for _ in range(steps))


def plot(what: str, points: dict[int, float], folder: Path) -> None:
    """Time against size, both logarithmic, with a line that grows in proportion."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mu-sota"  # the same figures give the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    sizes, times = list(points), list(points.values())
    axes.loglog(sizes, times, "o-", color="#2f6f8f", label="measured")
    axes.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], ":", color="#999999", label="in proportion")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel=what, ylabel="seconds a training step")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(folder / f"scaling-{what.replace(' ', '-')}.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, print, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    parser.add_argument("--plots", type=Path, help="folder for a plot each")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    measured: dict[str, dict[int, float]] = {}
    for what, sizes in SIZES.items():
        measured[what] = {}
        for size in sizes:
            measured[what][size] = step_seconds(what, size, arguments.steps)
            print(f"{what} {size:,}: {measured[what][size]:.3f} s a step", flush=True)
    record: dict[str, Any] = {
        "what": f"median seconds of a training step, {BATCH} x {LENGTH} tokens, preset mu-sota, one size changed",
        "command": f"python benchmarks/scaling.py --steps {arguments.steps}",
        "seconds": measured,
        "machine": environment.describe(),
    }
    write_json(arguments.out, record)
    for what, points in measured.items():
        if arguments.plots:
            plot(what, points, arguments.plots)


if __name__ == "__main__":
    main()
