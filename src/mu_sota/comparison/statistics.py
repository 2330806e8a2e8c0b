"""What a few seeds say: means with their intervals, and differences paired by seed.

Intervals are Student's t at 95 %, the test is the paired t-test (Student 1908), which is the same statement: p < 0.05
exactly where the interval of the mean difference leaves out zero. They speak of other seeds, so of other first weights
and orders of the training windows, not of other texts. Asking several differences at once is not
corrected for.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy.stats import t as student

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference shown"]


class Summary(NamedTuple):
    """Values by seed, their mean, and its interval; `low` and `high` are None where there is one seed."""

    values: list[float]
    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """Differences by seed, as in `Summary`, the p-value of the paired test, and what may be said of a loss."""

    values: list[float]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict


def summarise(values: Sequence[float]) -> Summary:
    """Mean and interval of one value a seed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there are no values to summarise")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Summary(list(values), mean, None, None)
    half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) * _standard_error(values, mean)
    return Summary(list(values), mean, mean - half, mean + half)


def compare_losses(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The loss of one model minus that of another, seed by seed.

    "Better" and "worse", of the first, are said only where the interval leaves out zero; one seed shows nothing.

    Raises:
        ValueError: not as many values on both sides, or none.
    """
    values = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    summary = summarise(values)
    if summary.low is None or summary.high is None:
        return Difference(*summary, p=None, verdict="no difference shown")
    error = _standard_error(values, summary.mean)
    p = float(2 * student.sf(abs(summary.mean) / error, len(values) - 1)) if error else float(not summary.mean)
    verdict: Verdict = "no difference shown"
    if summary.high < 0:
        verdict = "better"
    elif summary.low > 0:
        verdict = "worse"
    return Difference(*summary, p=p, verdict=verdict)


def _standard_error(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
