"""Forms of the MU model, each against the specified one: validation loss on WikiText-2, for the same steps.

    OMP_NUM_THREADS=1 python benchmarks/forms.py data/wikitext-2 --out docs/results/forms.json

The sizes are those of the preset `quickstart`; batches of 8 x 128 tokens, AdamW with weight decay 0.1, no dropout, one
cycle of the learning rate, the same for all. All forms of a seed see the same windows in the same order. The record is
written after every run, and a study that was interrupted goes on from it; `--only` and `--seeds` divide it.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ablations import SAY_SECONDS, train

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.comparison.statistics import compare_losses
from mu_sota.data.corpus import load_corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import evaluate
from mu_sota.settings.load import load_settings

ROTARY, BEFORE, PAIRS = {"position_encoding": "rotary"}, {"norm_placement": "before"}, {"pair_table_rows": 16_384}
FORMS: dict[str, dict[str, Any]] = {
    "as specified": {},
    "all three": ROTARY | BEFORE | PAIRS,
    "pairs": PAIRS,
    "rotary, norm before": ROTARY | BEFORE,
    "rotary": ROTARY,
    "norm before": BEFORE,
}
RECIPE = {"batch_size": 8, "window": 128, "stride": 128, "weight_decay": 0.1, "max_grad_norm": 1.0}
RISE = 0.1  # share of the steps up to the highest learning rate


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each form, over the seeds that it has in common with the specified one: mean loss, and the difference."""
    losses: dict[str, dict[int, float]] = {}
    for run in runs:
        losses.setdefault(run["form"], {})[run["seed"]] = run["validation"]["loss"]
    base = losses.get("as specified", {})
    compared: dict[str, Any] = {}
    for form, by_seed in losses.items():
        compared[form] = {"mean_loss": statistics.mean(by_seed.values()), "seeds": sorted(by_seed)}
        seeds = sorted(base.keys() & by_seed.keys())
        if form != "as specified" and len(seeds) > 1:
            found = compare_losses([by_seed[seed] for seed in seeds], [base[seed] for seed in seeds])
            compared[form] |= {"difference": found.mean, "interval_95": [found.low, found.high]}
    return compared


def main() -> None:
    """Train, evaluate, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as mu-sota train takes it")
    parser.add_argument("--out", type=Path, required=True, help="JSON record; a study of the same settings goes on")
    parser.add_argument("--steps", type=int, default=1900, help="optimizer steps of every run")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=FORMS, nargs="+", default=list(FORMS))
    arguments = parser.parse_args()

    run, model = load_settings("quickstart", overrides=RECIPE | {"learning_rate": arguments.learning_rate})
    corpus = load_corpus(arguments.data, vocab_size=model.vocab_size)
    windows = TrainWindows(corpus.train.tokens, run.window, run.stride)
    settings = {
        "preset": "quickstart",
        "data_fingerprint": corpus.fingerprint,
        "steps": arguments.steps,
        "share_of_steps_up_to_the_peak": RISE,
        "learning_rate": run.learning_rate,
        "dropout": 0.0,
        **RECIPE,
        "validation_tokens": corpus.validation.n_predicted,
    }
    record: dict[str, Any] = {
        "what": "validation loss in nats a token; differences are form minus specified form, paired by seed, with "
        "Student's t interval",
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/forms.py {Path(arguments.data).name} "
        f"--steps {arguments.steps} --learning-rate {arguments.learning_rate} --out {arguments.out}",
        "settings": settings,
        "machine": environment.describe(),
        "runs": [],
    }
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            raise SystemExit(f"{arguments.out} is of a study with other settings: give another --out")
        record["runs"] = before["runs"]
    done = {(row["form"], row["seed"]) for row in record["runs"]}
    for seed in arguments.seeds:
        for form in arguments.only:
            if (form, seed) in done:
                continue
            torch.manual_seed(seed)
            config = MuConfig.from_preset("quickstart", vocab_size=len(corpus.tokenizer), dropout=0.0, **FORMS[form])
            network, seconds, said = MuForCausalLM(config), [], time.monotonic()
            for taken in train(network, windows, run, seed, arguments.steps, RISE):
                seconds.append(taken)
                if time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    print(f"{form}, seed {seed}: step {len(seconds)} of {arguments.steps}", flush=True)
            score = evaluate(network, corpus.validation, window=run.window, stride=run.window, batch_size=32)
            row = {
                "form": form,
                "seed": seed,
                "fields": FORMS[form],
                "parameters": network.num_parameters(),
                "validation": score.as_dict(),
                "cpu_seconds_per_step": statistics.median(seconds),
                "commit": record["machine"]["commit"],
            }
            record["runs"].append(row)
            record["compared"] = compare(record["runs"])
            write_json(arguments.out, record)
            print(f"{form}, seed {seed}: validation loss {score.loss:.4f}", flush=True)
    for form, row in compare(record["runs"]).items():
        low, high = row.get("interval_95", (float("nan"),) * 2)
        print(
            f"{form:22}{row['mean_loss']:8.4f}{row.get('difference', float('nan')):+9.4f} ({low:+.4f} to {high:+.4f})"
        )


if __name__ == "__main__":
    main()
