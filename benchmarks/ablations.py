"""Three choices inside the layer, each against its alternative: validation loss of the preset `quickstart` on `pydocs`.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py --steps 380 --out docs/results/ablations.json

All variants of a seed start from the same weights and see the same windows in the same order with the same dropout; the
recipe is the preset's, its one cycle squeezed into fewer steps. The record is written after every run, and a study that
was interrupted goes on from it.
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
from transformers import Cache

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.common.text import duration
from mu_sota.comparison.statistics import compare_losses
from mu_sota.data.corpus import load_corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import evaluate
from mu_sota.model.attention import causal_attention
from mu_sota.model.backend import kernels_take
from mu_sota.model.blocks import NUM_BLOCKS, join_blocks, split_blocks
from mu_sota.model.kernels import fused_attention
from mu_sota.model.layers import BlockAttention, CrossBlockAttention
from mu_sota.settings.load import load_settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings
from mu_sota.training.batches import WindowOrder

PRESET, DATA = "quickstart", "pydocs"
SEEDS = (0, 1, 2)
SAY_SECONDS = 20


class TwoHeads(BlockAttention):
    """Two heads a block, each over half of what the block's projections give."""

    def forward(self, state: Tensor, bias: Tensor | None, cache: Cache | None, turns: Tensor | None = None) -> Tensor:
        heads = self.qkv(split_blocks(state)).unflatten(-1, (3, 2, -1))  # [B, T, N, 3, 2, S/2]
        heads = heads.transpose(2, 3).flatten(3, 4)  # [B, T, 3, 2N, S/2]
        if kernels_take(heads, heads.shape[-1]):
            mixed = fused_attention(heads.contiguous())[0]
        else:
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            mixed = causal_attention(query, key, value, bias).transpose(1, 2)
        return join_blocks(self.out(mixed.unflatten(2, (NUM_BLOCKS, 2)).flatten(-2)))


class NoEntropyGradient(CrossBlockAttention):
    """The gate sees the entropy, and teaches the attention nothing through it."""

    def forward(
        self, state: Tensor, bias: Tensor | None, cache: Cache | None, turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        output, entropy = super().forward(state, bias, cache, turns)
        return output, entropy.detach()


class AveragedRowEntropy(CrossBlockAttention):
    """The entropy of the mean of the heads' rows, in place of the mean of their entropies; from full matrices."""

    def forward(
        self, state: Tensor, bias: Tensor | None, cache: Cache | None, turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        query, key, value = self.qkv(state).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        future = torch.ones(state.shape[1], state.shape[1], dtype=torch.bool, device=state.device).triu(1)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        rows = scores.masked_fill(future, float("-inf")).softmax(-1)  # [B, H, T, T]
        mean = rows.mean(1)
        entropy = -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum(-1)
        return self.out((rows @ value).transpose(1, 2).flatten(-2)), entropy


VARIANTS: dict[str, type[BlockAttention] | type[CrossBlockAttention] | None] = {
    "base": None,
    "two-heads": TwoHeads,
    "no-entropy-gradient": NoEntropyGradient,
    "averaged-row-entropy": AveragedRowEntropy,
}


def build(variant: str, config: MuConfig, seed: int) -> MuForCausalLM:
    """The model of a variant; the weights at the start depend on the seed alone."""
    torch.manual_seed(seed)
    model = MuForCausalLM(config)
    parameters = model.num_parameters()
    other = VARIANTS[variant]
    for layer in model.model.layers:
        if other is not None and issubclass(other, BlockAttention):
            layer.block_attention.__class__ = other
        elif other is not None:
            layer.cross_attention.__class__ = other
    assert model.num_parameters() == parameters
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
    """For each variant that has run with every seed: mean loss, and the paired difference to base with its interval."""
    losses = {(run["variant"], run["seed"]): run["validation"]["loss"] for run in runs}
    compared: dict[str, Any] = {}
    for variant in VARIANTS:
        if not all((name, seed) in losses for name in ("base", variant) for seed in SEEDS):
            continue
        mine = [losses[variant, seed] for seed in SEEDS]
        speeds = [run["cpu_seconds_per_step"] for run in runs if run["variant"] == variant]
        compared[variant] = {"mean_loss": statistics.mean(mine), "cpu_seconds_per_step": statistics.median(speeds)}
        if variant != "base":
            found = compare_losses(mine, [losses["base", seed] for seed in SEEDS])
            compared[variant] |= {
                "differences_to_base": found.values,
                "mean_difference": found.mean,
                "interval_95": [found.low, found.high],
                "difference_shown": found.outcome != "no difference shown",
            }
    return compared


def table(compared: dict[str, Any]) -> str:
    """The comparison for people."""
    lines = [f"{'variant':22}{'loss':>8}{'minus base':>12}{'95 % interval':>22}{'CPU s a step':>14}"]
    for variant, row in compared.items():
        difference, interval = "", ""
        if variant != "base":
            low, high = row["interval_95"]
            difference, interval = f"{row['mean_difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"
        speed = row["cpu_seconds_per_step"]
        lines.append(f"{variant:22}{row['mean_loss']:8.4f}{difference:>12}{interval:>22}{speed:14.3f}")
    return "\n".join(lines)


def main() -> None:
    """Train, evaluate, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON record; a study of the same settings goes on")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps of every run")
    arguments = parser.parse_args()
    steps = arguments.steps

    run, model = load_settings(PRESET)
    corpus = load_corpus(DATA, vocab_size=model.vocab_size)
    config = MuConfig.from_preset(PRESET, vocab_size=len(corpus.tokenizer))
    windows = TrainWindows(corpus.train.tokens, run.window, run.stride)
    whole = run.num_epochs * WindowOrder(len(windows), run.batch_size, run.batch_size, 0, rank=0, world=1).steps
    rise = run.warmup_steps / whole
    used = ("batch_size", "window", "stride", "learning_rate", "weight_decay", "max_grad_norm")
    settings = {
        "preset": PRESET,
        "data": DATA,
        "data_fingerprint": corpus.fingerprint,
        "steps": steps,
        "steps_of_the_whole_recipe": whole,
        "share_of_steps_up_to_the_peak": rise,
        **{name: getattr(run, name) for name in used},
        "model": {name: getattr(config, name) for name in MODEL_KEYS},
        "parameters": build("base", config, 0).num_parameters(),
        "validation_tokens": corpus.validation.n_predicted,
    }
    record: dict[str, Any] = {
        "what": "validation loss in nats a token after training; differences are variant minus base of the same seed, "
        "the interval is Student's t with 2 degrees of freedom; CPU seconds are medians",
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/ablations.py --steps {steps} "
        f"--out {arguments.out}",
        "settings": settings,
        "seeds": list(SEEDS),
        "machine": environment.describe(),
        "runs": [],
        "compared": {},
    }
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text(encoding="utf-8"))
        if before["settings"] != settings or before["seeds"] != list(SEEDS):
            raise SystemExit(f"{arguments.out} is of a study with other settings: give another --out")
        record["runs"] = before["runs"]
    done = {(row["variant"], row["seed"]) for row in record["runs"]}
    todo = [(variant, seed) for seed in SEEDS for variant in VARIANTS if (variant, seed) not in done]
    start, trained = time.monotonic(), 0
    for number, (variant, seed) in enumerate(todo, start=1):
        network, seconds, said = build(variant, config, seed), [], time.monotonic()
        for taken in train(network, windows, run, seed, steps, rise):
            seconds.append(taken)
            trained += 1
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                rate = trained / (said - start)
                left = duration((len(todo) * steps - trained) / rate)
                print(
                    f"{variant}, seed {seed}: step {len(seconds)} of {steps}; {rate:.1f} steps a second, {left} left",
                    flush=True,
                )
        score = evaluate(network, corpus.validation, window=run.window, stride=run.window, batch_size=run.batch_size)
        if not math.isfinite(score.loss):
            raise SystemExit(f"{variant}, seed {seed} diverged: the loss is {score.loss}")
        record["runs"].append(
            {
                "variant": variant,
                "seed": seed,
                "validation": score.as_dict(),
                "cpu_seconds_per_step": statistics.median(seconds),
                "commit": record["machine"]["commit"],
            }
        )
        record["compared"] = compare(record["runs"])
        write_json(arguments.out, record)
        print(f"run {number} of {len(todo)}: {variant}, seed {seed}: validation loss {score.loss:.4f}", flush=True)
    print(table(compare(record["runs"])))


if __name__ == "__main__":
    main()
