"""Conclusions of a comparison: from the test losses of its record to tables, controls and plain sentences."""

import statistics
from collections.abc import Sequence
from typing import Any, get_args

from mu_sota.common.text import readable
from mu_sota.saved.run_record import loss_of

from .questions import MATCHINGS, NON_EMBEDDING, Question, matchings_of
from .statistics import Outcome, compare_losses, summarise

METRICS = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "accuracy")

_TITLES: dict[Question, str] = {
    "params": "The same number of parameters",
    "flops": "The same number of operations",
    "time": "The same time on this machine",
}
_EXPLANATIONS: dict[Question, str] = {
    "params": f"Every model has as many parameters as MU: in total, or non-embedding parameters ({NON_EMBEDDING}). All "
    "see the same tokens; how much they compute for one, and how long that takes, differs.",
    "flops": "Every model does as many floating-point operations for a token as MU, forward and backward together, and "
    "sees the same tokens. Numbers of parameters and times differ. Counted are products of matrices in PyTorch's own "
    "operations; not norms, activations and look-ups, of which MU has more than the others.",
    "time": "Every model has the size at which a training step was timed to take as long as MU's on this machine, and "
    "sees the same tokens. Numbers of parameters and operations differ, and so would the sizes on another machine.",
}
_KERNELS = (
    " MU's layers ran on kernels of their own, in C++, and the others' on PyTorch's; the loss of all on the same."
)
_TIME_OFF = 0.05  # relative difference in time that is worth a sentence

_BETTER, _WORSE, _NO_DIFFERENCE = get_args(Outcome)


def conclude(
    contenders: Sequence[dict[str, Any]],
    references: Sequence[dict[str, Any]],
    questions: Sequence[Question],
    kernels: bool,
    epochs: float,
    tuned_for: int | None = None,
) -> dict[str, Any]:
    """Tables, controls and sentences (under "verdict"), all from losses on the test split.

    Args:
        contenders: as `comparison.json` has them, MU first; their runs hold the scores.
        references: likewise.
        questions: a table each.
        kernels: True if MU ran on kernels of its own.
        epochs: times that the models read the training split.
        tuned_for: steps of the earlier comparison that chose their settings, if one did.
    """
    mu, by_name = contenders[0], {one["name"]: one for one in contenders}
    baselines = [one for one in contenders if one["matched_on"]]
    tables = [_table(question, mu, baselines, references, kernels) for question in questions]
    controls = [_control(one, by_name[one["control_of"]]) for one in contenders if one["control_of"]]
    names = {
        **{one["name"]: f"{one['label']} ({MATCHINGS[one['matched_on']].title})" for one in baselines},
        **{one["name"]: f"the {one['label']}" for one in references},
    }
    sentences = [_sentence(table["title"], _differences(table, "arm"), names) for table in tables]
    if references:
        sentences.append(_sentence("Beside models that only count", _differences(tables[0], "reference"), names))
    sentences += _remarks(contenders, epochs)
    if tuned_for is not None:
        sentences.append(
            f"Nothing was tuned: the settings are those that an earlier comparison chose for {tuned_for:,} steps."
        )
    if failed := [by_name[control["arm"]]["label"] for control in controls if not control["passed"]]:
        sentences.insert(
            0,
            f"A control did not come out as it must ({', '.join(failed)}), so nothing below can be relied on.",
        )
    return {"tables": tables, "controls": controls, "verdict": sentences}


def _table(
    question: Question,
    mu: dict[str, Any],
    baselines: Sequence[dict[str, Any]],
    references: Sequence[dict[str, Any]],
    kernels: bool,
) -> dict[str, Any]:
    matched = [one for one in baselines if one["matched_on"] in matchings_of(question)]
    return {
        "question": question,
        "title": _TITLES[question],
        "asks": _EXPLANATIONS[question] + (_KERNELS if question == "time" and kernels else ""),
        "rows": [
            {"arm": mu["name"], "metrics": _metrics(mu["runs"]), "difference": None},
            *({"arm": one["name"]} | _row(mu, one["runs"]) for one in matched),
            *({"reference": one["name"]} | _row(mu, [one]) for one in references),
        ],
    }


def _row(mu: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A model's scores and MU's difference to it; a reference has one run, which is compared with every seed."""
    ours, theirs = _losses(mu["runs"]), _losses(runs)
    found = compare_losses(ours, theirs if len(theirs) == len(ours) else theirs * len(ours))
    outcome = found.outcome if found.outcome == _NO_DIFFERENCE else f"MU {found.outcome}"
    return {"metrics": _metrics(runs), "difference": found.as_dict() | {"verdict": outcome}}


def _losses(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [loss_of(run["test"]) for run in runs]


def _metrics(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: _summary([run["test"][name] for run in runs]) for name in METRICS}


def _summary(values: list[float | None]) -> dict[str, Any]:
    """Without a mean if a value is None, which stands for one beyond all numbers."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return {"values": values, "mean": None, "low": None, "high": None}
    return summarise(finite)._asdict()


def _control(control: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    found = compare_losses(_losses(control["runs"]), _losses(against["runs"]))
    expected = _NO_DIFFERENCE if control["new_seeds"] else _WORSE
    return {
        "arm": control["name"],
        "against": against["name"],
        "expected": expected,
        "difference": found.as_dict(),
        "passed": found.outcome == expected,
    }


# --- Sentences --------------------------------------------------------------------------------------------------------


def _differences(table: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {row[kind]: row["difference"] for row in table["rows"] if kind in row and row["difference"]}


def _sentence(title: str, differences: dict[str, dict[str, Any]], names: dict[str, str]) -> str:
    """What MU is better than, what it is worse than, and where the seeds show neither."""
    parts = []
    for outcome in (_BETTER, _WORSE):
        named = [
            f"{names[name]} by {abs(found['mean']):.3f} nats a token"
            for name, found in differences.items()
            if found["verdict"] == f"MU {outcome}"
        ]
        if named:
            parts.append(f"MU is {outcome} than {listed(named)}")
    if equal := [names[name] for name, found in differences.items() if found["verdict"] == _NO_DIFFERENCE]:
        parts.append(f"no difference is shown to {listed(equal)}")
    return f"{title}: {'; '.join(parts)}."


def _remarks(contenders: Sequence[dict[str, Any]], epochs: float) -> list[str]:
    """What weakens the conclusions."""
    remarks = []
    if epochs < 1:
        remarks.append(f"The models read {epochs:.2g} of the text, once: what holds so early need not hold later.")
    ratios = {one["title"]: _time_ratio(one, contenders[0]) for one in contenders if one["matched_on"] == "time"}
    if off := [f"{title} ({ratio:.2f})" for title, ratio in ratios.items() if abs(ratio - 1) > _TIME_OFF]:
        remarks.append(
            f"The same time was not quite met, since sizes are timed before anything is tuned: the trainings of these "
            f"took so many times as long as MU's: {', '.join(off)}."
        )
    if edges := [one["title"] for one in contenders if one["at_edge"]]:
        remarks.append(
            f"The best learning rate was the lowest or highest of the grid for {listed(edges)}: one beyond it might "
            f"serve better there."
        )
    diverged = [
        f"{one['title']}, seed {run['seed']}, at step {run['diverged']}"
        for one in contenders
        for run in one["runs"]
        if run["diverged"]
    ]
    if diverged:
        remarks.append(f"Trainings that diverged, so that their best weights before count: {'; '.join(diverged)}.")
    return remarks


def _time_ratio(contender: dict[str, Any], mu: dict[str, Any]) -> float:
    """Seconds a step over MU's in the final runs: the median over seeds, which take turns."""

    def seconds(run: dict[str, Any]) -> float:
        return float(run["seconds"]) / (run["diverged"] or run["steps"])

    pairs = zip(contender["runs"], mu["runs"], strict=True)
    return statistics.median(seconds(theirs) / seconds(ours) for theirs, ours in pairs)


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: A, B and C."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def as_text(record: dict[str, Any]) -> str:
    """The tables for a terminal."""
    names = {one["name"]: one["title"] for one in record["arms"]}
    names |= {reference["name"]: reference["label"] for reference in record["references"]}
    lines = []
    for table in record["tables"]:
        lines.append(f"{table['title']:56}{'PPL/word':>10}{'bits/byte':>11}{'loss':>9}   MU minus it")
        for row in table["rows"]:
            metrics, found = row["metrics"], row["difference"]
            difference = ""
            if found:
                interval = "" if found["low"] is None else f" ({found['low']:+.4f} to {found['high']:+.4f})"
                difference = f"{found['mean']:+.4f}{interval} {found['verdict']}"
            lines.append(
                f"  {names[row.get('arm') or row['reference']]:54}{readable(metrics['word_perplexity']['mean'], 1):>10}"
                f"{metrics['bits_per_byte']['mean']:>11.4f}{metrics['loss']['mean']:>9.4f}   {difference}"
            )
        lines.append("")
    return "\n".join(lines)
