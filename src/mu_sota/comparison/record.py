"""The record of a comparison, `comparison.json`: everything that its report shows, and how it was made."""

from dataclasses import asdict
from typing import Any, NamedTuple

from mu_sota.common.text import timestamp

from .baselines import with_dropout
from .conclusions import conclude
from .contenders import Contender
from .folder import ComparisonFolder
from .hyperparameter_search import GRID, Trial, at_grid_edge
from .inputs import FORMAT, Inputs
from .plan import Plan
from .single_training import WARMUP_SHARE


class Results(NamedTuple):
    """What the training runs of one contender gave.

    Attributes:
        trial: chosen for its final runs.
        tuning: the trials of every rung, as recorded; empty for a control.
        runs: final runs with their scores, seed by seed.
        samples: continuations of the prompts.
    """

    trial: Trial
    tuning: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    samples: list[str]


def make_record(
    inputs: Inputs,
    plan: Plan,
    folder: ComparisonFolder,
    results: dict[str, Results],
    references: list[dict[str, Any]],
) -> dict[str, Any]:
    """The record of a finished comparison.

    Args:
        results: by the name of the contender.
        references: as `references.json` has them, with their names.
    """
    corpus, request, start = inputs.corpus, inputs.request, folder.start
    questions, machine, parameters = request.ordered_questions, start["machines"][0], plan.contenders[0].parameters
    kernels = machine["kernels"] == "compiled" and not machine["gpus"] and plan.precision == "fp32"
    tokens = plan.steps * plan.batch_tokens
    epochs = tokens / corpus.train.n_predicted
    contenders = [
        _contender_record(contender, results[contender.name], plan, start["leak_checks"])
        for contender in plan.contenders
    ]
    return {
        "format": FORMAT,
        "command": request.command(folder.path),
        "data": request.data,
        "data_fingerprint": corpus.fingerprint,
        "text": corpus.about,
        "corpus": {
            "vocab_size": inputs.config.vocab_size,
            "tokenizer": inputs.run.tokenizer,
            **{f"{split}_tokens": getattr(corpus, split).n_predicted for split in ("train", "validation", "test")},
        },
        "preset": request.preset,
        "settings": inputs.settings
        | {"precision": plan.precision, "micro_batch_size": plan.micro_batch_size}
        | {"warmup_share": WARMUP_SHARE, "validation_tokens_of_curves": plan.curve_tokens},
        "match": questions,
        "seeds": list(range(plan.seeds)),
        "steps": plan.steps,
        "tokens": tokens,
        "epochs": epochs,
        "trials": None if plan.earlier else request.trials,
        "earlier_tuning": asdict(plan.earlier) if plan.earlier else None,
        "grid": GRID,
        "rungs": [rung._asdict() for rung in plan.rungs],
        "machine": machine,
        "other_machines": start["machines"][1:],
        "started": start["started"],
        "finished": timestamp(),
        "arms": contenders,
        "prompts": inputs.run.prompts,
        "references": references,
        "shares": {
            "tables": parameters.token_tables / parameters.total,
            "outside": parameters.non_embedding / parameters.total,
            "embeddings": (parameters.total - parameters.token_tables - parameters.non_embedding) / parameters.total,
        },
        **conclude(contenders, references, questions, kernels, epochs, plan.earlier.steps if plan.earlier else None),
    }


def _contender_record(
    contender: Contender, results: Results, plan: Plan, leak_checks: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    flops_per_step = plan.batch_tokens * contender.flops_per_token
    for run in results.runs:
        run["curve"] = [
            row | {"tokens": row["step"] * plan.batch_tokens, "flops": row["step"] * flops_per_step}
            for row in run["curve"]
        ]
    return {
        "name": contender.name,
        "label": contender.label,
        "title": contender.title,
        "family": contender.family,
        "matched_on": contender.matched_on,
        "match_ratio": contender.match_ratio,
        "control_of": contender.control_of,
        "new_seeds": contender.new_seeds,
        "config": with_dropout(contender.config, results.trial.dropout).to_diff_dict(),
        "parameters": contender.parameters.as_dict(),
        "flops_per_token": contender.flops_per_token,
        "training_flops": plan.steps * flops_per_step,
        "seconds_per_step": contender.seconds_per_step,
        "leak_check": leak_checks[contender.control_of or contender.name],
        "tuning": results.tuning,
        "chosen": results.trial._asdict(),
        "at_edge": [] if contender.control_of else at_grid_edge(results.trial),
        "runs": results.runs,
        "samples": results.samples,
    }
