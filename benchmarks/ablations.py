"""The form of the presets with one part left out or changed at a time: validation loss of `quickstart` on WikiText-2.

It is the form that they had before their blocks were fed by name, so that a study goes on where it stopped; "fed by
name" has that, too.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py data/wikitext-2 --out docs/results/ablations.json

Batches of 8 x 128 tokens, AdamW with weight decay 0.1, no dropout, one cycle of the learning rate. The rate is that of
the whole form for all, so a variant that would like another has a handicap. All variants of a seed see the same windows
in the same order. The record is written after every run, and a study that was interrupted goes on from it;
`--only` and `--seeds` divide it.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.common.text import duration
from mu_sota.comparison.statistics import compare_losses
from mu_sota.data.corpus import load_corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import evaluate
from mu_sota.model.layers import BlockAttention, CrossBlockAttention, DynamicSensitivity
from mu_sota.model.presets import FORM
from mu_sota.settings.load import load_settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings
from mu_sota.training.batches import WindowOrder

PRESET = "quickstart"
RECIPE = {"batch_size": 8, "window": 128, "stride": 128, "weight_decay": 0.1, "max_grad_norm": 1.0}
RISE = 0.1  # share of the steps up to the highest learning rate
SAY_SECONDS = 20


class NoBlockAttention(BlockAttention):
    """Adds nothing to the state."""

    def forward(self, state: Tensor, *_: Any) -> Tensor:
        return torch.zeros_like(state)


class NoCrossAttention(CrossBlockAttention):
    """Adds nothing to the state, so that blocks meet in the feed-forward network alone."""

    def forward(self, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(state), state.new_zeros(state.shape[:2])


class NoSensitivity(DynamicSensitivity):
    """Every block moves all the way, as in a standard Transformer."""

    def forward(self, affinity: Tensor, entropy: Tensor) -> Tensor:
        return torch.ones_like(affinity)


PARTS = {
    NoBlockAttention: "block_attention",
    NoCrossAttention: "cross_attention",
    NoSensitivity: "sensitivity",
}
"""The attribute of a layer whose place each takes. Parameters that are then without use stay where they are."""

AS_SPECIFIED = {name: MuConfig.__dataclass_fields__[name].default for name in FORM}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[type, ...]]] = {
    "whole": ({}, ()),
    "fed by name": ({"block_inputs": "by_name"}, ()),
    "learned positions": ({"position_encoding": "learned"}, ()),
    "norm after": ({"norm_placement": "after"}, ()),
    "no pairs": ({"pair_table_rows": 0}, ()),
    "no induction": ({"induction_tables": 0}, ()),
    "no tables": ({"pair_table_rows": 0, "induction_tables": 0}, ()),
    "no block attention": ({}, (NoBlockAttention,)),
    "no cross-block attention": ({}, (NoCrossAttention,)),
    "no sensitivity": ({}, (NoSensitivity,)),
    "no blocks": ({}, (NoBlockAttention, NoSensitivity)),
    "as specified": (AS_SPECIFIED, ()),
}
"""Fields that differ from those of the whole form, and parts that take the place of a layer's own."""


def build(variant: str, vocab_size: int, seed: int) -> MuForCausalLM:
    """The model of a variant, its weights drawn from the seed."""
    fields, parts = VARIANTS[variant]
    fields = {"block_inputs": "token"} | fields
    torch.manual_seed(seed)
    model = MuForCausalLM(MuConfig.from_preset(PRESET, vocab_size=vocab_size, dropout=0.0, **fields))
    for layer in model.model.layers:
        for part in parts:
            getattr(layer, PARTS[part]).__class__ = part
    return model


def batches(windows: TrainWindows, settings: RunSettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the recipe without end, in the order that a run with this seed has."""
    order = WindowOrder(len(windows), settings.batch_size, settings.batch_size, seed, rank=0, world=1)
    while True:
        for batch in order:
            tokens = windows.gather(torch.tensor(batch))
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        order.epoch += 1


def train(
    model: MuForCausalLM, windows: TrainWindows, run: RunSettings, seed: int, steps: int, rise: float
) -> Iterator[float]:
    """Train as `mu_sota.training.trainer` does; yields the CPU seconds of every step."""
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, fused=True)
    schedule = OneCycleLR(optimizer, max_lr=run.learning_rate, total_steps=steps, pct_start=rise, cycle_momentum=False)
    model.train()
    for _, (ids, labels) in zip(range(steps), batches(windows, run, seed), strict=False):
        start = time.process_time()
        model(input_ids=ids, shift_labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield time.process_time() - start


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each variant, over the seeds that it has in common with the whole: mean loss, and the difference."""
    losses: dict[str, dict[int, float]] = {}
    for run in runs:
        losses.setdefault(run["variant"], {})[run["seed"]] = run["validation"]["loss"]
    whole = losses.get("whole", {})
    compared: dict[str, Any] = {}
    for variant, by_seed in losses.items():
        compared[variant] = {"mean_loss": statistics.mean(by_seed.values()), "seeds": sorted(by_seed)}
        seeds = sorted(whole.keys() & by_seed.keys())
        if variant != "whole" and len(seeds) > 1:
            found = compare_losses([by_seed[seed] for seed in seeds], [whole[seed] for seed in seeds])
            compared[variant] |= {"difference": found.mean, "interval_95": [found.low, found.high]}
    return compared


def main() -> None:
    """Train, evaluate, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as mu-sota train takes it")
    parser.add_argument("--out", type=Path, required=True, help="JSON record; a study of the same settings goes on")
    parser.add_argument("--steps", type=int, default=1900, help="optimizer steps of every run")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    arguments = parser.parse_args()

    run, model = load_settings(PRESET, overrides=RECIPE | {"learning_rate": arguments.learning_rate})
    corpus = load_corpus(arguments.data, vocab_size=model.vocab_size)
    windows = TrainWindows(corpus.train.tokens, run.window, run.stride)
    settings = {
        "preset": PRESET,
        "data_fingerprint": corpus.fingerprint,
        "steps": arguments.steps,
        "share_of_steps_up_to_the_peak": RISE,
        "learning_rate": run.learning_rate,
        **RECIPE,
        "model": {name: getattr(model, name) for name in MODEL_KEYS if name != "block_inputs"} | {"dropout": 0.0},
        "validation_tokens": corpus.validation.n_predicted,
    }
    record: dict[str, Any] = {
        "what": "validation loss in nats a token; differences are variant minus whole, paired by seed, with the "
        "interval of Student's t",
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/ablations.py "
        f"{Path(arguments.data).name} --steps {arguments.steps} --learning-rate {arguments.learning_rate} "
        f"--out {arguments.out}",
        "settings": settings,
        "machine": environment.describe(),
        "runs": [],
    }
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            raise SystemExit(f"{arguments.out} is of a study with other settings: give another --out")
        processor = before["machine"]["processor"]
        record["runs"] = [{"processor": processor} | row for row in before["runs"]]
    done = {(row["variant"], row["seed"]) for row in record["runs"]}
    todo = [(variant, seed) for seed in arguments.seeds for variant in arguments.only if (variant, seed) not in done]
    start, trained = time.monotonic(), 0
    for number, (variant, seed) in enumerate(todo, start=1):
        network, seconds, said = build(variant, len(corpus.tokenizer), seed), [], time.monotonic()
        for taken in train(network, windows, run, seed, arguments.steps, RISE):
            seconds.append(taken)
            trained += 1
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                left = duration((len(todo) * arguments.steps - trained) * (said - start) / trained)
                print(f"{variant}, seed {seed}: step {len(seconds)} of {arguments.steps}; {left} left", flush=True)
        score = evaluate(network, corpus.validation, window=run.window, stride=run.window, batch_size=32)
        if not math.isfinite(score.loss):
            raise SystemExit(f"{variant}, seed {seed} diverged: the loss is {score.loss}")
        row = {
            "variant": variant,
            "seed": seed,
            "parameters": network.num_parameters(),
            "validation": score.as_dict(),
            "cpu_seconds_per_step": statistics.median(seconds),
            "processor": record["machine"]["processor"],
            "commit": record["machine"]["commit"],
        }
        record["runs"].append(row)
        record["compared"] = compare(record["runs"])
        write_json(arguments.out, record)
        print(f"run {number} of {len(todo)}: {variant}, seed {seed}: validation loss {score.loss:.4f}", flush=True)
    for variant, row in compare(record["runs"]).items():
        low, high = row.get("interval_95", (math.nan, math.nan))
        difference = f"{row['difference']:+9.4f} ({low:+.4f} to {high:+.4f})" if "difference" in row else ""
        print(f"{variant:26}{row['mean_loss']:8.4f}{difference}")


if __name__ == "__main__":
    main()
