"""The results of a leak check, as a table, a sentence and a record."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mu_sota.model.errors import InputError

from .locate import Location

STD = "std of the logits"

Verdict = Literal["ok", "leak", "differs", "skipped"]


class LeakError(InputError):
    """The model sees tokens that it must not see, or a cache, padding or the text's length changes its predictions."""


@dataclass(frozen=True)
class Result:
    """The result of one check.

    Args:
        check: its name.
        verdict: `ok`; `leak`; `differs` if a cache, padding or the length of the text changes predictions, which is a
            defect though no leak; or `skipped` if the check could not be made, or not to the end.
        change: the largest one, in `unit`; None if skipped.
        tolerance: the largest change let pass.
        unit: of the change and the tolerance.
        meaning: of a finding; the reason for a skipped check; else a remark or nothing.
        location: where a finding arises, if one module can be named.
    """

    check: str
    verdict: Verdict
    change: float | None = None
    tolerance: float | None = None
    unit: str = STD
    meaning: str = ""
    location: Location | None = None

    def line(self) -> str:
        """One row of the report's table."""
        if self.change is None:
            return f"{self.check:17} {'-':>10} {'-':>10}  not checked: {self.meaning}"
        verdict = self.verdict if self.verdict == "ok" else self.verdict.upper()
        unit = f" ({self.unit})" if self.unit != STD else ""
        remark = f": {self.meaning}" if self.verdict == "ok" and self.meaning else ""
        return f"{self.check:17} {self.change:10.2g} {self.tolerance:10.0e}  {verdict}{unit}{remark}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: `change` is then None, and the meaning says so."""
        infinite = self.change is not None and not math.isfinite(self.change)
        return {
            "check": self.check,
            "verdict": self.verdict,
            "change": _for_json(self.change),
            "tolerance": _for_json(self.tolerance),
            "unit": self.unit,
            "meaning": self.meaning + (" (the change is infinite, or not a number)" if infinite else ""),
            "location": self.location.as_dict() if self.location else None,
        }


@dataclass(frozen=True)
class Report:
    """All results on one model.

    Args:
        model: its class or name.
        vocab_size, rows, length: ids were drawn below `vocab_size`, in batches of `rows` x `length`.
        dtype, device: the model's coarsest number format, and its device.
        rounding: how far its logits move, in their standard deviations, if every embedding changes by one unit in the
            last place; None if it has no `nn.Embedding`.
        draws: the logits depend on random numbers in eval mode; every pass then had the same seed.
        results: in the order in which the checks ran.
    """

    model: str
    vocab_size: int
    rows: int
    length: int
    dtype: str
    device: str
    rounding: float | None
    draws: bool = False
    results: list[Result] = field(default_factory=list)

    @property
    def findings(self) -> list[Result]:
        """Leaks, then other differences."""
        found = [result for result in self.results if result.verdict in ("leak", "differs")]
        return sorted(found, key=lambda result: result.verdict != "leak")

    @property
    def clean(self) -> bool:
        """No check found anything."""
        return not self.findings

    def require_clean(self) -> None:
        """Raises LeakError, with the first finding, if there is one."""
        __tracebackhide__ = True
        if self.clean:
            return
        first = self.findings[0]
        leaks = "the model is not causal, so its perplexity would mean nothing"
        differs = "the model does not give the same predictions in all ways in which it is used"
        raise LeakError(
            f"{leaks if first.verdict == 'leak' else differs}: {first.meaning} "
            f"(check '{first.check}': {first.change:.2g} {first.unit}, tolerance {first.tolerance:.0e})"
            f"{f'; it {first.location.sentence()}' if first.location else ''}"
        )

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.rows} rows of {self.length} tokens below {self.vocab_size}, "
            f"{self.dtype} on {self.device}"
        )
        return "\n".join([head, "", TABLE_HEAD, *(result.line() for result in self.results), "", self.summary()])

    def summary(self) -> str:
        """Every finding with its meaning and its origin; or that nothing was found."""
        lines = [DRAWS] if self.draws else []
        if self.clean:
            done = [result.check for result in self.results if result.verdict == "ok"]
            found = (
                f"no leak found within {self.length} tokens in {self.dtype} by {len(done)} checks: {', '.join(done)}"
            )
            return "\n".join([found, *lines])
        shown: list[Location] = []
        for finding in self.findings:
            lines.append(f"{finding.verdict.upper()} ({finding.check}): {finding.meaning}")
            if finding.location and finding.location not in shown:
                shown.append(finding.location)
                lines.append(f"    {finding.location.sentence()}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "clean": self.clean,
            "vocab_size": self.vocab_size,
            "rows": self.rows,
            "length": self.length,
            "dtype": self.dtype,
            "device": self.device,
            "rounding": _for_json(self.rounding),
            "draws_random_numbers": self.draws,
            "checks": [result.as_dict() for result in self.results],
        }


DRAWS = "the model draws random numbers in eval mode: every pass was given the same seed"
TABLE_HEAD = f"{'check':17} {'change':>10} {'tolerance':>10}  (in standard deviations of the logits)"


def _for_json(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None
