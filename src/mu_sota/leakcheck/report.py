"""What a leak check found, as a table, a sentence and a record."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mu_sota.model.errors import InputError

from .locate import Location

STD = "std of the logits"

Verdict = Literal["ok", "leak", "differs", "skipped"]


class LeakError(InputError):
    """The model sees what it must not see, or a cache or padding changes what it predicts."""


@dataclass(frozen=True)
class Result:
    """What one check found.

    Args:
        check: its name.
        verdict: `ok`; `leak`; `differs` if a cache, padding or the length of the text changes predictions, which is a
            defect though no leak; or `skipped` if the model could not be asked that, or not to the end.
        change: its figure, `unit` says of what; None if skipped.
        tolerance: the largest figure let pass.
        unit: what the figure is measured in.
        meaning: of a finding, what it means; of a skipped check, why; else a remark or nothing.
        location: of a finding, where it arises, if one module can be named.
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
        said = self.verdict if self.verdict == "ok" else self.verdict.upper()
        unit = f" ({self.unit})" if self.unit != STD else ""
        remark = f": {self.meaning}" if self.verdict == "ok" and self.meaning else ""
        return f"{self.check:17} {self.change:10.2g} {self.tolerance:10.0e}  {said}{unit}{remark}"

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
        dtype, device: of the model.
        rounding: how far its logits move, in their standard deviations, if every embedding changes by one unit in the
            last place; None if it has no `nn.Embedding`.
        draws: whether the logits depend on random numbers in eval mode; then every pass has the same seed.
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
        """What is wrong: leaks, then other differences."""
        found = [result for result in self.results if result.verdict in ("leak", "differs")]
        return sorted(found, key=lambda result: result.verdict != "leak")

    @property
    def clean(self) -> bool:
        """No check found anything."""
        return not self.findings

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.rows} rows of {self.length} tokens below {self.vocab_size}, "
            f"{self.dtype} on {self.device}"
        )
        return "\n".join([head, "", TABLE_HEAD, *(result.line() for result in self.results), "", self.summary()])

    def summary(self) -> str:
        """The conclusion: what leaks, what it means and where it arises; or that nothing was found."""
        lines = [DRAWS] if self.draws else []
        if self.clean:
            done = [result.check for result in self.results if result.verdict == "ok"]
            found = (
                f"no leak found within {self.length} tokens in {self.dtype} by {len(done)} checks: {', '.join(done)}"
            )
            return "\n".join([found, *lines])
        told: list[Location] = []
        for finding in self.findings:
            lines.append(f"{finding.verdict.upper()} ({finding.check}): {finding.meaning}")
            if finding.location and finding.location not in told:
                told.append(finding.location)
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
