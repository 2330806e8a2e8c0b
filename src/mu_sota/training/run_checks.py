"""Did a run work? Checks of its own record, and the judgement that is printed at its end."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

from mu_sota.common.text import RULE, readable
from mu_sota.evaluation.metrics import Score


class RunCheck(NamedTuple):
    """A statement about a run, whether it is true, and what to do if not."""

    passed: bool
    text: str
    advice: str = ""


def judge_run(
    epochs: list[dict[str, Any]], num_steps: int, best_loads: bool, unigram: float, ended_early: bool = False
) -> list[RunCheck]:
    """Check a run: its length, its saved model and its perplexity; of several epochs, their losses and samples too.

    Args:
        epochs: the rows of kind `epoch` of `metrics.jsonl`, in order.
        num_steps: planned optimizer steps.
        best_loads: both copies of the best model load and hold the same weights.
        unigram: perplexity of the unigram model on the same validation tokens.
        ended_early: its settings ended it, since validation brought nothing better.
    """
    train = [row["train"]["loss"] for row in epochs]
    loss, perplexity = (
        [math.inf if (value := row["validation"][name]) is None else value for row in epochs]
        for name in ("loss", "perplexity")
    )
    samples = [[sample["text"] for sample in row["samples"]] for row in epochs]
    done, complete = epochs[-1]["step"], sum(row["complete"] for row in epochs)
    checks = [
        RunCheck(
            done == num_steps or ended_early,
            f"{done:,} of {num_steps:,} steps done, {complete} whole epochs"
            + (", ended early by patience" if ended_early else ""),
        ),
        RunCheck(
            best_loads,
            "best model saved, and loads again",
            "look for a full disk or a folder that cannot be written",
        ),
        RunCheck(
            min(perplexity) < unigram,
            f"validation perplexity {min(perplexity):,.2f} against {unigram:,.2f} of the unigram model",
            "not better than word frequencies yet: train longer (--epochs, --max-steps), or raise the learning rate",
        ),
    ]
    if len(epochs) > 1:
        lower = "lower the learning rate (--set learning_rate=...), or stop earlier if only validation rises"
        checks += [
            RunCheck(_falls(train), f"training loss, every epoch lower: {_arrow(train, '.4f')}", lower),
            RunCheck(_falls(loss), f"validation loss, every epoch lower: {_arrow(loss, '.4f')}", lower),
            RunCheck(
                perplexity[-1] < perplexity[0], f"validation perplexity fell: {_arrow(perplexity, ',.2f')}", lower
            ),
        ]
    if len(epochs) > 1 and samples[0]:
        checks.append(
            RunCheck(
                all(before != after for before, after in pairwise(samples)),
                "generated text changed every epoch",
                "the model is not learning: raise the learning rate, or check that the data is what you think",
            )
        )
    return checks


def verdict_text(checks: list[RunCheck], best: dict[str, Any], unigram: Score) -> str:
    """The judgement under its heading: the checks, and the scores of the best epoch beside the unigram model's."""
    score = best["validation"]
    return (
        f"{RULE}\nVERDICT\n{RULE}\n{as_text(checks)}\n"
        f"  Best epoch {best['epoch']}: PPL={readable(score['perplexity'])}, "
        f"PPL/word={readable(score['word_perplexity'])}, bits/byte={readable(score['bits_per_byte'], 4)} on validation "
        f"(unigram model: PPL={readable(unigram.perplexity)}, bits/byte={unigram.bits_per_byte:.4f})"
    )


def as_text(checks: list[RunCheck]) -> str:
    """A line for each check, with the advice under those that failed."""
    lines = []
    for check in checks:
        lines.append(f"  [{'ok' if check.passed else 'NO'}] {check.text}")
        if not check.passed and check.advice:
            lines.append(f"       {check.advice}")
    return "\n".join(lines)


def _falls(values: list[float]) -> bool:
    return all(after < before for before, after in pairwise(values))


def _arrow(values: list[float], spec: str) -> str:
    return " > ".join(format(value, spec) for value in values)
