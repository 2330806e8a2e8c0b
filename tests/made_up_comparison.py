"""A made-up comparison.json: plausible numbers of models that were never trained."""

import math
import random
from collections.abc import Sequence
from typing import Any

from mu_sota.comparison.baselines import FAMILIES
from mu_sota.comparison.conclusions import conclude
from mu_sota.comparison.questions import MATCHINGS, QUESTIONS, matchings_of

WORDS, BYTES, TOKENS, UNIGRAM, KNESER_NEY = 120_000, 640_000, 190_000, 6.412, 4.905

# total parameters, non-embedding, FLOPs per token, seconds per step, test loss
MODELS = {
    "mu": (1_243_456, 316_032, 7_012_352, 0.1402, 4.8123),
    "gpt2-params": (1_244_928, 720_640, 9_904_128, 0.0689, 4.7212),
    "gpt2-trunk": (839_680, 315_392, 6_291_456, 0.0502, 4.8188),
    "gpt2-flops": (921_600, 389_120, 7_020_544, 0.0561, 4.7904),
    "gpt2-time": (2_362_368, 1_709_056, 18_743_296, 0.1398, 4.6021),
    "llama-params": (1_242_112, 717_824, 9_887_744, 0.0741, 4.6987),
    "llama-trunk": (840_192, 315_904, 6_295_552, 0.0557, 4.8011),
    "llama-flops": (919_808, 387_328, 7_009_792, 0.0602, 4.7741),
    "llama-time": (2_236_928, 1_583_616, 17_432_576, 0.1409, 4.5873),
    "llama-tables-params": (1_245_312, 515_904, 7_921_152, 0.0701, 4.6612),
    "llama-tables-trunk": (1_045_504, 315_904, 6_295_552, 0.0571, 4.7407),
    "llama-tables-flops": (1_116_928, 387_328, 7_009_792, 0.0616, 4.7198),
    "llama-tables-time": (2_398_720, 1_549_312, 17_002_496, 0.1398, 4.5533),
}
GRID = {"learning_rate": [0.001, 0.003, 0.01], "weight_decay": [0.01, 0.1], "dropout": [0.0, 0.1]}


def score(loss: float) -> dict[str, float]:
    """As `mu_sota.evaluation.metrics.Score.as_dict()`."""
    nll = loss * TOKENS
    return {
        "loss": loss,
        "accuracy": 0.62 - loss / 11,
        "perplexity": math.exp(loss),
        "word_perplexity": math.exp(nll / WORDS),
        "bits_per_byte": nll / math.log(2) / BYTES,
        "nll": nll,
        "num_correct": int((0.62 - loss / 11) * TOKENS),
        "num_tokens": TOKENS,
        "num_words": WORDS,
        "num_bytes": BYTES,
    }


def comparison(
    seeds: Sequence[int] = (0, 1, 2), match: Sequence[str] = QUESTIONS, controls: bool = True, sample: str = ""
) -> dict[str, Any]:
    """The record of a comparison.

    Args:
        match: which of the questions were asked.
        controls: also a model against itself with other seeds, and against itself with a bad learning rate.
        sample: what every model writes after the first prompt, instead of made-up words.
    """
    chance = random.Random(0)
    matchings = [matched for question in QUESTIONS if question in match for matched in matchings_of(question)]
    steps, tokens = 400, 819_200

    def contender(
        name: str, family: str, label: str, sizes: tuple[int, int, int, float, float], **more: Any
    ) -> dict[str, Any]:
        total, non_embedding, flops, seconds, loss = sizes
        runs = []
        for seed in seeds:
            final = loss + chance.gauss(0, 0.008)
            curve = []
            for step in range(40, steps + 1, 40):
                now = final + 2.1 * ((step / steps) ** -0.35 - 1) + chance.gauss(0, 0.006)
                curve.append(
                    {
                        "step": step,
                        "tokens": tokens * step // steps,
                        "flops": flops * tokens * step / steps,
                        "seconds": seconds * step * chance.uniform(0.99, 1.02),
                        "train_loss": now - 0.05,
                        "validation_loss": now,
                    }
                )
            took = curve[-1]["seconds"]
            scores = {"validation": score(final + 0.02), "test": score(final)}
            done = {"seed": seed, "steps": steps, "seconds": took, "best_step": steps, "diverged": None}
            runs.append(done | scores | {"curve": curve})
        return {
            "name": name,
            "label": label,
            "title": f"{label}, {MATCHINGS[more['matched_on']].title}" if "matched_on" in more else label,
            "family": family,
            "matched_on": None,
            "control_of": None,
            "new_seeds": False,
            "config": {"model_type": family, "vocab_size": 4096, "num_hidden_layers": 6, "dropout": 0.1},
            "parameters": {"total": total, "outside": non_embedding, "tables": 393_216 if family == "mu" else 0},
            "flops_per_token": flops,
            "training_flops": float(flops * tokens),
            "seconds_per_step": seconds,
            "match_ratio": None,
            "leak_check": {"clean": True, "text": "no leak found within 61 tokens in float32 by 8 checks"},
            "tuning": tuning(loss, chance),
            "chosen": {"learning_rate": 0.01, "weight_decay": 0.1, "dropout": 0.0},
            "at_edge": ["learning_rate"] if family == "mu" else [],
            "runs": runs,
            "samples": [
                sample or f"The quick brown {label} of the state, & a <UNK> of it.",
                "Once upon a time it was.",
            ],
        } | more

    contenders = [contender("mu", "mu", "MU", MODELS["mu"])]
    for matched in matchings:
        column = {"params": 0, "trunk": 1, "flops": 2, "time": 3}[matched]
        for family, label in ((name, family.label) for name, family in FAMILIES.items()):
            sizes = MODELS[f"{family}-{matched}"]
            ratio = sizes[column] / MODELS["mu"][column]
            contenders.append(
                contender(f"{family}-{matched}", family, label, sizes, matched_on=matched, match_ratio=ratio)
            )
    if controls:
        of = contenders[1]["name"]
        slow = (*MODELS[of][:4], MODELS[of][4] + 0.9)
        bare = {"control_of": of, "tuning": []}
        contenders += [
            contender("control-again", "gpt2", "GPT-2, other seeds", MODELS[of], new_seeds=True, **bare),
            contender("control-slow", "gpt2", "GPT-2, learning rate x 0.1", slow, **bare),
        ]
    references = [
        {"name": "unigram", "label": "unigram model", "seconds": 0.1, "entries": 4096},
        {"name": "kneser-ney", "label": "Kneser-Ney 5-gram", "seconds": 21.0, "entries": 3_012_345},
    ]
    for reference, loss in zip(references, (UNIGRAM, KNESER_NEY), strict=True):
        reference |= {"validation": score(loss + 0.03), "test": score(loss)}

    return {
        "format": 1,
        "command": "mu-sota compare --data data/wikitext-2 --out runs/comparison --preset quickstart --controls",
        "data": "data/wikitext-2",
        "data_fingerprint": "b7d1f6c09e55",
        "corpus": {
            "vocab_size": 4096,
            "tokenizer": "bpe",
            "train_tokens": 2_642_580,
            "validation_tokens": 273_841,
            "test_tokens": TOKENS,
        },
        "preset": "quickstart",
        "settings": {
            "batch_size": 16,
            "window": 128,
            "stride": 128,
            "precision": "fp32",
            "validation_tokens_of_curves": 24_576,
        },
        "match": list(match),
        "seeds": list(seeds),
        "steps": steps,
        "tokens": tokens,
        "epochs": 0.31,
        "trials": 8,
        "earlier_tuning": None,
        "grid": GRID,
        "rungs": [{"steps": 50, "trials": 8}, {"steps": 100, "trials": 4}, {"steps": 200, "trials": 2}],
        "machine": {
            "python": "3.12.9",
            "versions": {"mu-sota": "0.2.0", "torch": "2.13.0", "transformers": "5.10.1"},
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "platform": "Linux-6.8-x86_64",
            "processor": "Example CPU 9000",
            "kernels": "compiled",
            "cores": 2,
            "threads": 1,
            "memory_gib": 15.6,
            "gpus": [],
        },
        "other_machines": [],
        "started": "2026-11-25T18:00:00+00:00",
        "finished": "2026-11-25T21:41:07+00:00",
        "arms": contenders,
        "prompts": ["The quick brown", "Once upon a time"],
        "references": references,
        "shares": {"tables": 0.316, "outside": 0.254, "embeddings": 0.43},
        **conclude(
            contenders, references, [question for question in QUESTIONS if question in match], kernels=True, epochs=0.31
        ),
    }


def tuning(loss: float, chance: random.Random) -> list[dict[str, Any]]:
    """Three rungs of successive halving; the last of the first rung has diverged."""
    names = list(GRID)
    settings = [
        dict(zip(names, values, strict=True))
        for values in (
            (lr, decay, dropout)
            for lr in GRID["learning_rate"]
            for decay in GRID["weight_decay"]
            for dropout in GRID["dropout"]
        )
    ][-8:]
    rungs = []
    for steps, left in ((50, 8), (100, 4), (200, 2)):
        above = 2.1 * ((steps / 400) ** -0.35 - 1)
        trials = [each | {"loss": loss + above + chance.gauss(0.1, 0.05), "seconds": steps * 0.1} for each in settings]
        if steps == 50:
            trials[0]["loss"] = None
        rungs.append({"steps": steps, "trials": trials})
        trials = sorted(trials, key=lambda trial: trial["loss"] or math.inf)
        settings = [{name: trial[name] for name in names} for trial in trials[: left // 2]]
    return rungs
