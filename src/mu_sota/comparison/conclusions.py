"""What a comparison shows: from the test losses of its record to tables, controls and a verdict in plain words."""

import statistics
from collections.abc import Sequence
from typing import Any

from mu_sota.common.text import readable
from mu_sota.saved.run_record import loss_of

from .contenders import MATCHINGS, SAID, Question
from .statistics import Difference, compare_losses, summarise

METRICS = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "accuracy")

_TITLES: dict[Question, str] = {
    "params": "The same number of parameters",
    "flops": "The same number of operations",
    "time": "The same time on this machine",
}
_ASKS: dict[Question, str] = {
    "params": "Every model has as many parameters as MU: in all, or outside embeddings, token tables and output "
    "projection. All see the same tokens; how much they compute for one, and how long that takes, differs.",
    "flops": "Every model does as many floating-point operations for a token as MU, forward and backward together, and "
    "sees the same tokens. Numbers of parameters and times differ. Counted are products of matrices in PyTorch's own "
    "operations; not norms, activations and look-ups, of which MU has more than the others.",
    "time": "Every model has the size at which a training step was timed to take as long as MU's on this machine, and "
    "sees the same tokens. Numbers of parameters and operations differ, and so would the sizes on another machine.",
}
_KERNELS = (
    " MU's layers ran on kernels of their own, in C++, and the others' on PyTorch's; the loss of all on the same."
)
_OFF = 0.05  # relative difference in time that is worth a sentence

_NO_DIFFERENCE = "no difference shown"


def conclude(
    arms: Sequence[dict[str, Any]],
    references: Sequence[dict[str, Any]],
    questions: Sequence[Question],
    kernels: bool,
    epochs: float,
) -> dict[str, Any]:
    """Tables, controls and verdict, all from losses on the test split.

    Args:
        arms: as `comparison.json` has them, MU first; their runs hold the scores.
        references: likewise.
        questions: a table each.
        kernels: MU ran on kernels of its own.
        epochs: how many times the models read the training split.
    """
    mu, opponents = arms[0], [arm for arm in arms if arm["matched_on"]]
    tables = []
    for question in questions:
        matched = [arm for arm in opponents if arm["matched_on"] in MATCHINGS[question]]
        rows = [
            {"arm": mu["name"], "metrics": _metrics(mu["runs"]), "difference": None},
            *({"arm": arm["name"]} | _row(mu, arm["runs"]) for arm in matched),
            *({"reference": one["name"]} | _row(mu, [one]) for one in references),
        ]
        asks = _ASKS[question] + (_KERNELS if question == "time" and kernels else "")
        tables.append({"question": question, "title": _TITLES[question], "asks": asks, "rows": rows})
    named = {arm["name"]: arm for arm in arms}
    controls = [_control(arm, named[arm["control_of"]]) for arm in arms if arm["control_of"]]
    said = {
        **{arm["name"]: f"{arm['label']} ({SAID[arm['matched_on']]})" for arm in opponents},
        **{one["name"]: f"the {one['label']}" for one in references},
    }
    verdict = [_sentence(table, said) for table in tables]
    if references:
        verdict.append(_against("Beside models that only count", _differences(tables[0], "reference"), said))
    verdict += _remarks(arms, epochs)
    if failed := [control for control in controls if not control["passed"]]:
        names = ", ".join(named[control["arm"]]["label"] for control in failed)
        verdict.insert(0, f"A control did not come out as it must ({names}), so nothing below can be relied on.")
    return {"tables": tables, "controls": controls, "verdict": verdict}


def _remarks(arms: Sequence[dict[str, Any]], epochs: float) -> list[str]:
    """What a reader of the verdict must know of single models."""
    said = []
    if epochs < 1:
        said.append(f"The models read {epochs:.2g} of the text, once: what holds so early need not hold later.")
    taken = {arm["title"]: _time_taken(arm, arms[0]) for arm in arms if arm["matched_on"] == "time"}
    if off := [f"{title} ({ratio:.2f})" for title, ratio in taken.items() if abs(ratio - 1) > _OFF]:
        said.append(
            f"The same time was not quite met, since sizes are timed before anything is tuned: the trainings of these "
            f"took so many times as long as MU's: {', '.join(off)}."
        )
    if edges := [arm["title"] for arm in arms if arm["at_edge"]]:
        said.append(
            f"The best learning rate was the lowest or highest of the grid for {_listed(edges)}: one beyond it might "
            f"serve better there."
        )
    broken = [
        f"{arm['title']}, seed {run['seed']}, at step {run['diverged']}"
        for arm in arms
        for run in arm["runs"]
        if run["diverged"]
    ]
    if broken:
        said.append(f"Trainings that diverged, so that their best weights before count: {'; '.join(broken)}.")
    return said


def _time_taken(arm: dict[str, Any], mu: dict[str, Any]) -> float:
    """Seconds a step over MU's in the trainings that count: the median over seeds, which take turns."""

    def seconds(run: dict[str, Any]) -> float:
        return float(run["seconds"]) / (run["diverged"] or run["steps"])

    pairs = zip(arm["runs"], mu["runs"], strict=True)
    return statistics.median(seconds(theirs) / seconds(ours) for theirs, ours in pairs)


def as_text(record: dict[str, Any]) -> str:
    """The tables for a terminal."""
    named = {arm["name"]: arm["title"] for arm in record["arms"]}
    named |= {reference["name"]: reference["label"] for reference in record["references"]}
    lines = []
    for table in record["tables"]:
        lines.append(f"{table['title']:54}{'PPL/word':>10}{'bits/byte':>11}{'loss':>9}   MU minus it")
        for row in table["rows"]:
            metrics, found = row["metrics"], row["difference"]
            said = ""
            if found:
                interval = "" if found["low"] is None else f" ({found['low']:+.4f} to {found['high']:+.4f})"
                said = f"{found['mean']:+.4f}{interval} {found['verdict']}"
            lines.append(
                f"  {named[row.get('arm') or row['reference']]:52}{readable(metrics['word_perplexity']['mean'], 1):>10}"
                f"{metrics['bits_per_byte']['mean']:>11.4f}{metrics['loss']['mean']:>9.4f}   {said}"
            )
        lines.append("")
    return "\n".join(lines)


def _losses(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [loss_of(run["test"]) for run in runs]


def _metrics(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: _summary([run["test"][name] for run in runs]) for name in METRICS}


def _summary(values: list[float | None]) -> dict[str, Any]:
    """With no mean where a value is None, which is beyond what a number can hold."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"values": values, "mean": None, "low": None, "high": None}
    return summarise(known)._asdict()


def _row(mu: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A model's figures; one that is counted, and not trained, has a single run, which stands against every seed."""
    ours, theirs = _losses(mu["runs"]), _losses(runs)
    found = compare_losses(ours, theirs if len(theirs) == len(ours) else theirs * len(ours))
    said = found.verdict if found.verdict == _NO_DIFFERENCE else f"MU {found.verdict}"
    return {"metrics": _metrics(runs), "difference": found._asdict() | {"verdict": said}}


def _control(arm: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    found: Difference = compare_losses(_losses(arm["runs"]), _losses(against["runs"]))
    expected = _NO_DIFFERENCE if arm["new_seeds"] else "worse"
    return {
        "arm": arm["name"],
        "against": against["name"],
        "expected": expected,
        "difference": found._asdict(),
        "passed": found.verdict == expected,
    }


def _differences(table: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {row[kind]: row["difference"] for row in table["rows"] if kind in row and row["difference"]}


def _sentence(table: dict[str, Any], said: dict[str, str]) -> str:
    return _against(table["title"], _differences(table, "arm"), said)


def _against(title: str, differences: dict[str, dict[str, Any]], said: dict[str, str]) -> str:
    parts = []
    for verdict, words in (("MU better", "better than"), ("MU worse", "worse than")):
        names = [
            f"{said[name]} by {abs(found['mean']):.3f} nats a token"
            for name, found in differences.items()
            if found["verdict"] == verdict
        ]
        if names:
            parts.append(f"MU is {words} {_listed(names)}")
    open_ones = [said[name] for name, found in differences.items() if found["verdict"] == _NO_DIFFERENCE]
    if open_ones:
        parts.append(f"no difference is shown to {_listed(open_ones)}")
    return f"{title}: {'; '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
