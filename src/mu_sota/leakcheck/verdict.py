"""Verdict."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import eagerly, hooked
from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .locate import Location, locate
from .logits import change
from .model_adapter import ModelUnderTest
from .passes import Comparison, Passes
from .report import Result, Verdict
from .time_limit import TimeIsUp
from .tolerance import (
    EXACT,
    ROUNDING_DRAWS,
    ROUNDING_FACTOR,
    SCALED_UP,
    TOLERANCES,
    TOO_COARSE,
    TooCoarse,
    least_precise,
)

ATTEMPTS = 3
"""Failed comparisons, largest change first, that are tried for a location."""


class Finding(NamedTuple):
    """How far the logits moved, and how far they might have."""

    change: float
    tolerance: float
    comparison: Comparison

    def excess(self) -> float:
        return self.change / self.tolerance


Group = Callable[[], Iterator[Comparison]]


class Comparer:
    """Compares passes through one tested, with the tolerance that its number format needs.

    Args:
        tested: the model.
        passes: in eval mode; from them its number format and its rounding are measured.
    """

    def __init__(self, tested: ModelUnderTest, passes: Passes) -> None:
        self.counter = passes.counter
        self.dtype = least_precise(tested)
        self.tolerance = TOLERANCES[self.dtype]
        self.names = tested.named_modules()
        self.embeddings = tested.embeddings()
        self.leaky: set[str] = set()
        """Checks that found a leak."""
        self.require_determinism(passes)
        self.rounding = self._measured_rounding(passes) if self.embeddings else None

    def require_determinism(self, passes: Passes) -> None:
        """Raises InputError if the same pass twice gives different logits."""
        again = change(passes.base(), passes.base.logits) / passes.scale
        if again > self.tolerance:
            raise InputError(self._not_deterministic(again))

    def _not_deterministic(self, moved: float) -> str:
        return (
            f"the model is not deterministic: two passes over the same tokens, with the same random seed, differ by "
            f"{moved:.2g} standard deviations of the logits (tolerance {self.tolerance:.0e}), so no comparison would "
            f"mean anything; switch off what makes it differ, or give a function that does"
        )

    def _measured_rounding(self, passes: Passes) -> float:
        """How far the logits move, in their standard deviations, if every embedding changes in its last place."""
        # At least that of float32, in which many models compute parts whatever their format.
        unit = max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps)

        def shake(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None  # one that also returns the positions, say
            signs = torch.randint(2, output.shape, generator=passes.generator).to(output) * 2 - 1
            return output * (1 + unit * signs)

        with hooked(self.embeddings, shake):
            return max(change(passes.base(), passes.base.logits) for _ in range(ROUNDING_DRAWS)) / passes.scale

    def compare(
        self,
        name: str,
        groups: list[Group],
        wrong: Verdict = "leak",
        each: bool = False,
        scaled_up: Passes | None = None,
        said: str = "",
    ) -> Result:
        """The result of some comparisons.

        Args:
            name: of the check.
            groups: tried in this order until one finds something; the first must be there to the end.
            wrong: the verdict if it finds something.
            each: whether a comparison that cannot be made leaves the others standing.
            scaled_up: the passes, if they are those of louder weights.
            said: added to what a finding means.
        """
        self.counter.begin_check(name)
        findings: list[Finding] = []
        stopped, remarks = "", list[str]()
        for number, group in enumerate(groups):
            before = len(findings)
            error = self._collect(group, findings, each, self.scaled_up_tolerance if scaled_up else None)
            if any(one.excess() > 1 for one in findings):
                break
            if isinstance(error, TimeIsUp) or (error and number == 0 and not (each and findings)):
                stopped = f"after {len(findings)} comparisons {_reason(error)}" if findings else _reason(error)
                break
            if error:
                remarks.append(f"after {len(findings) - before} of its comparisons {_reason(error)}")
        findings.sort(key=Finding.excess, reverse=True)
        if not findings or findings[0].excess() <= 1:
            doubtful = max((one.change for one in findings if one.comparison.of_one_shape), default=0.0)
            if doubtful > (SCALED_UP if scaled_up else EXACT) and not stopped:
                stopped = f"it moved by {doubtful:.1g} standard deviations of the logits, {self._coarse}"
            if stopped or not findings:
                return Result(name, "skipped", meaning=stopped or "there is nothing to compare")
            return Result(name, "ok", findings[0].change, findings[0].tolerance, meaning="; ".join(remarks))
        worst = findings[0]
        if doubt := self._doubt(worst, scaled_up):
            return Result(name, "skipped", meaning=doubt)
        location = self.first_location(finding for finding in findings[:ATTEMPTS] if finding.excess() > 1)
        self.leaky |= {name} if wrong == "leak" else set()
        meaning = f"{worst.comparison.meaning}{said}"
        return Result(name, wrong, worst.change, worst.tolerance, meaning=meaning, location=location)

    def _collect(self, group: Group, findings: list[Finding], each: bool, tolerance: float | None) -> Exception | None:
        """Add what the comparisons of a group show; gives what broke them off, or (of `each`) the first that failed."""
        failed: Exception | None = None
        previous = None
        try:
            for comparison in group():
                if previous is not None and previous is not comparison.theirs.run:
                    previous.forget()  # logits of a large vocabulary are large
                previous = comparison.theirs.run
                try:
                    allowed = tolerance or self._tolerance(comparison)
                    findings.append(Finding(comparison.change(), allowed, comparison))
                except InputError as error:
                    if not each or isinstance(error, TimeIsUp):
                        raise
                    failed = failed or error
        except Exception as error:
            return error
        return failed

    @property
    def scaled_up_tolerance(self) -> float:
        """Of passes of one shape with louder weights."""
        return max(SCALED_UP, self.tolerance)

    def _doubt(self, finding: Finding, scaled_up: Passes | None) -> str:
        """Why a finding is none, if it is none."""
        ours, theirs = finding.comparison.ours.run, finding.comparison.theirs.run
        with self.counter.without_limit():
            again = [finding.comparison.again() for _ in range(2)]
            rounding = self._measured_rounding(scaled_up) if scaled_up and self.embeddings else 0.0
        if finding.change <= ROUNDING_FACTOR * rounding:
            return f"with louder weights it moved by {finding.change:.1g} standard deviations, as rounding does too"
        moved = max(0.0 if one == finding.change else abs(one - finding.change) for one in again)
        if moved > finding.tolerance:
            return self._not_deterministic(moved)
        if finding.comparison.of_one_shape and ours.random_state_after != theirs.random_state_after:
            return (
                "how many random numbers it draws depends on the tokens, so that passes over different tokens draw "
                "different ones; switch its randomness off"
            )
        return ""

    def _tolerance(self, comparison: Comparison) -> float:
        """Tight where the passes have one shape; else what rounding may do in this model."""
        if comparison.of_one_shape or self.rounding is None:
            return self.tolerance
        tolerance = max(self.tolerance, ROUNDING_FACTOR * self.rounding)
        if tolerance > TOO_COARSE:
            raise TooCoarse(f"it may move by {tolerance:.1g} standard deviations of the logits, {self._coarse}")
        return tolerance

    @property
    def _coarse(self) -> str:
        half = self.dtype in (torch.float16, torch.bfloat16)
        advice = "check it in float32" if half else "a model with smaller weights or fewer layers could be checked"
        return f"which in {str(self.dtype)[6:]} may be a leak or nothing but rounding; {advice}"

    def first_location(self, findings: Iterable[Finding]) -> Location | None:
        """Where the first of the findings for which it can be told arises."""
        for finding in findings:
            try:
                with eagerly():
                    ours, theirs = finding.comparison.ours, finding.comparison.theirs
                    location = locate(self.names, ours, theirs, finding.tolerance / 10)
            except Exception:  # a scripted module takes no hooks; the finding stands without its place
                return None
            if location:
                return location
        return None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else one_line(error)
