"""Which check finds which planted leak, where it is traced to, and how weak a leak can be and still be found.

    python benchmarks/leakcheck_planted.py --out docs/results/leakcheck/planted.json

Writes the record and, beside it, its table as Markdown. The models are those of tests/planted.py.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mu_sota.common import environment
from mu_sota.common.files import replacing, write_json
from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.noise_training import train_on_uniform_tokens
from mu_sota.leakcheck.report import Report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from planted import CLEAN, LEAKS, SequenceMean, TinyLM

CHECKS = (
    "future",
    "batch",
    "row alone",
    "length",
    "gradient",
    "cache",
    "padding",
    "future (louder)",
    "batch (louder)",
    "future (training)",
    "batch (training)",
)
STRENGTHS = [10.0**-power for power in range(9)]


def main() -> None:
    """Check, train, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    parser.add_argument("--seconds", type=float, default=10.0, help="of training on uniform tokens, each model")
    arguments = parser.parse_args()

    models = [("leak", name, make) for name, (make, _, _) in LEAKS.items()]
    models += [("clean", name, make) for name, make in CLEAN.items()]
    results = []
    for kind, name, make in models:

        def build(make: Any = make) -> Any:
            torch.manual_seed(0)
            return make()

        start = time.monotonic()
        report = check(build())
        seconds = time.monotonic() - start
        report.results.append(train_on_uniform_tokens(build, arguments.seconds))
        results.append({"kind": kind, "name": name, "seconds": round(seconds, 2), **report.as_dict()})
        print(_row(results[-1]), flush=True)

    sweep = []
    for strength in STRENGTHS:
        torch.manual_seed(0)
        report = check(TinyLM(SequenceMean(), strength))
        sweep.append(
            {"strength": strength, "found_by": [finding.check for finding in report.findings], **_changes(report)}
        )
        print(f"strength {strength:.0e}: {', '.join(sweep[-1]['found_by']) or 'not found'}", flush=True)

    record = {"what": __doc__.split("\n")[0], "models": results, "strengths": sweep, "machine": environment.describe()}
    write_json(arguments.out, record)
    with replacing(arguments.out.with_suffix(".md")) as temporary:
        temporary.write_text(_markdown(results, sweep), encoding="utf-8")


def _changes(report: Report) -> dict[str, Any]:
    return {result.check: result.change for result in report.results if result.change is not None}


def _row(result: dict[str, Any]) -> str:
    checks = {one["check"]: one for one in result["checks"]}
    cells = [_cell(checks.get(name)) for name in (*CHECKS, "uniform tokens")]
    places = [one["location"] for one in checks.values() if one["location"]]
    place = f"`{places[0]['module'] or '(the model)'}` ({places[0]['kind']})" if places else ""
    return f"| {result['name']} | {' | '.join(cells)} | {place} |"


def _cell(check: dict[str, Any] | None) -> str:
    if check is None or check["verdict"] == "skipped":
        return "–"
    change = f"{check['change']:.1g}" if check["change"] is not None else "inf"  # as JSON has none
    return f"**{change}**" if check["verdict"] in ("leak", "differs") else change


def _markdown(results: list[dict[str, Any]], sweep: list[dict[str, Any]]) -> str:
    header = f"| model | {' | '.join(CHECKS)} | uniform tokens | arises in |\n|---|{'---:|' * (len(CHECKS) + 1)}---|"
    parts = []
    for kind, title in (("leak", "With one leak planted"), ("clean", "Causal")):
        rows = [_row(result) for result in results if result["kind"] == kind]
        parts.append(f"## {title}\n\n{header}\n" + "\n".join(rows) + "\n")
    rows = [f"| {one['strength']:.0e} | {', '.join(one['found_by']) or 'not found'} |" for one in sweep]
    parts.append(
        "## How weak a leak may be\n\n| share of the sequence mean | found by |\n|---|---|\n" + "\n".join(rows)
    )
    note = (
        "Largest change in standard deviations of the logits (of the gradient check: relative; of uniform tokens: "
        "nats); bold is a finding, – could not be asked. Made by `benchmarks/leakcheck_planted.py`.\n"
    )
    return "# Planted leaks\n\n" + note + "\n" + "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
