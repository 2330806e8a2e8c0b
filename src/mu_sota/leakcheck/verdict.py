"""From the comparisons of a check to its result: ok, a finding and where it arises, or the reason why neither."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .locate import Location, locate
from .logits import change
from .passes import SAME_LOGITS, Comparison, Passes
from .report import Result, Verdict
from .time_limit import TimeIsUp
from .tolerance import EXACT, ROUNDING_FACTOR, SCALED_UP, Tolerance

ATTEMPTS = 3
"""Failed comparisons, largest change first, that are tried for a location."""

Comparisons = Callable[[], Iterator[Comparison]]
"""Makes some comparisons, one after the other."""


class Finding(NamedTuple):
    """How far the logits moved in a comparison, and how far they may."""

    change: float
    tolerance: float
    comparison: Comparison

    def excess(self) -> float:
        return self.change / self.tolerance


class Comparer:
    """Compares passes through one model.

    Args:
        passes: in eval mode.

    Attributes:
        tolerance: of this model.
        draws: the logits depend on random numbers in eval mode.
        leaky_checks: names of the checks that found a leak.

    Raises:
        InputError: the same pass twice gives different logits, or other tokens give the same logits.
    """

    def __init__(self, passes: Passes) -> None:
        self.counter = passes.counter
        self.names = passes.tested.named_modules()
        self.leaky_checks: set[str] = set()
        self.tolerance = Tolerance(passes)
        logits, fixed = passes.base.logits, self.tolerance.fixed * passes.scale
        others = passes.run(passes.to_ids(passes.other_tokens(passes.indices)))()
        if change(others, logits) <= fixed:
            raise InputError(SAME_LOGITS)
        self.draws = any(change(passes.run(passes.ids, seed=seed)(), logits) > fixed / 10 for seed in (1, 2))

    def compare(
        self,
        name: str,
        groups: Sequence[Comparisons],
        verdict: Verdict = "leak",
        independent: bool = False,
        scaled_up: Passes | None = None,
        remark: str = "",
    ) -> Result:
        """The result of a check.

        Args:
            name: of the check.
            groups: tried in this order until one finds something; the first must be made to the end.
            verdict: of a finding.
            independent: a comparison that cannot be made does not stop the others.
            scaled_up: the passes, if they are those of scaled-up weights.
            remark: added to the meaning of a finding.
        """
        self.counter.begin_check(name)
        findings: list[Finding] = []
        stopped, remarks = "", list[str]()
        for number, group in enumerate(groups):
            before = len(findings)
            error = self._collect(group, findings, independent, self.tolerance.scaled_up if scaled_up else None)
            if any(one.excess() > 1 for one in findings):
                return self._finding(name, findings, verdict, scaled_up, remark)
            if isinstance(error, TimeIsUp) or (error and number == 0 and not (independent and findings)):
                stopped = f"after {len(findings)} comparisons {_reason(error)}" if findings else _reason(error)
                break
            if error:
                remarks.append(f"after {len(findings) - before} of its comparisons {_reason(error)}")
        doubtful = max((one.change for one in findings if one.comparison.of_one_shape), default=0.0)
        if doubtful > (SCALED_UP if scaled_up else EXACT) and not stopped:
            stopped = f"it moved by {doubtful:.1g} standard deviations of the logits, {self.tolerance.too_coarse()}"
        if stopped or not findings:
            return Result(name, "skipped", meaning=stopped or "there is nothing to compare")
        worst = max(findings, key=Finding.excess)
        return Result(name, "ok", worst.change, worst.tolerance, meaning="; ".join(remarks))

    def compare_other_shapes(
        self, name: str, group: Comparisons, verdict: Verdict, independent: bool = False
    ) -> Result:
        """The result of a check whose passes have other shapes than the base pass."""
        if self.draws:
            why = "the model draws random numbers, and of texts of another shape it draws others"
            return Result(name, "skipped", meaning=why)
        return self.compare(name, [group], verdict, independent)

    def _collect(
        self, group: Comparisons, findings: list[Finding], independent: bool, tolerance: float | None
    ) -> Exception | None:
        """Append the findings of a group; returns the error that stopped it, or (if independent) the first error."""
        failed: Exception | None = None
        previous = None
        try:
            for comparison in group():
                if previous is not None and previous is not comparison.theirs.run:
                    previous.forget()  # logits of a large vocabulary are large
                previous = comparison.theirs.run
                try:
                    allowed = tolerance or self.tolerance.of(comparison)
                    findings.append(Finding(comparison.change(), allowed, comparison))
                except InputError as error:
                    if not independent or isinstance(error, TimeIsUp):
                        raise
                    failed = failed or error
        except Exception as error:
            return error
        return failed

    def _finding(
        self, name: str, findings: list[Finding], verdict: Verdict, scaled_up: Passes | None, remark: str
    ) -> Result:
        findings = sorted(findings, key=Finding.excess, reverse=True)
        worst = findings[0]
        if doubt := self._doubt(worst, scaled_up):
            return Result(name, "skipped", meaning=doubt)
        location = self.first_location(finding for finding in findings[:ATTEMPTS] if finding.excess() > 1)
        if verdict == "leak":
            self.leaky_checks.add(name)
        meaning = f"{worst.comparison.meaning}{remark}"
        return Result(name, verdict, worst.change, worst.tolerance, meaning=meaning, location=location)

    def _doubt(self, finding: Finding, scaled_up: Passes | None) -> str:
        """The reason not to believe a finding, or nothing."""
        ours, theirs = finding.comparison.ours.run, finding.comparison.theirs.run
        with self.counter.without_limit():
            again = [finding.comparison.again() for _ in range(2)]
            rounding = self.tolerance.measure_rounding(scaled_up) if scaled_up else None
        if finding.change <= ROUNDING_FACTOR * (rounding or 0.0):
            return f"with scaled-up weights it moved by {finding.change:.1g} standard deviations, as rounding does too"
        moved = max(0.0 if one == finding.change else abs(one - finding.change) for one in again)
        if moved > finding.tolerance:
            return self.tolerance.not_deterministic(moved)
        if finding.comparison.of_one_shape and ours.random_state_after != theirs.random_state_after:
            return (
                "how many random numbers it draws depends on the tokens, so that passes over different tokens draw "
                "different ones; switch its randomness off"
            )
        return ""

    def first_location(self, findings: Iterable[Finding]) -> Location | None:
        """The origin of the first of the findings that has a known one."""
        for finding in findings:
            try:
                ours, theirs = finding.comparison.ours, finding.comparison.theirs
                location = locate(self.names, ours, theirs, finding.tolerance / 10)
            except Exception:  # a scripted module takes no hooks; the finding is reported without a location
                return None
            if location:
                return location
        return None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else one_line(error)
