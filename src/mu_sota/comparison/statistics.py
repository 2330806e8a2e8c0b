"""Statistics of a few seeds: means with their intervals, and differences paired by seed.

Intervals are Student's t at 95 %, the test is the paired t-test (Student 1908), which agrees with them: p < 0.05
exactly if the interval of the mean difference leaves out zero. They are about other seeds, so other initial weights
and orders of the training windows, not about other texts. There is no correction for testing several differences.
"""

import math
import warnings
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

from scipy import stats

CONFIDENCE = 0.95

Outcome = Literal["better", "worse", "no difference shown"]


class Summary(NamedTuple):
    """Values by seed, their mean, and its interval; `low` and `high` are None for one seed."""

    values: list[float]
    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """Differences by seed, as in `Summary`, the p-value of the paired test, and the outcome for the first model."""

    values: list[float]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """For records, where the outcome is called verdict."""
        content = self._asdict()
        return content | {"verdict": content.pop("outcome")}


def summarise(values: Sequence[float]) -> Summary:
    """Mean and interval of one value a seed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there are no values to summarise")
    return Summary(list(values), fmean(values), *_t_test(values)[:2])


def compare_losses(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The loss of one model minus that of another, seed by seed.

    The outcome is better or worse, of the first, only if the interval leaves out zero; one seed shows nothing.

    Raises:
        ValueError: not as many values on both sides, or none.
    """
    values = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    summary = summarise(values)
    p = _t_test(values)[2]
    outcome: Outcome = "no difference shown"
    if summary.high is not None and summary.high < 0:
        outcome = "better"
    elif summary.low is not None and summary.low > 0:
        outcome = "worse"
    return Difference(*summary, p=p, outcome=outcome)


def _t_test(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Low and high end of the mean's interval, and the p-value of the test whether it is zero; None for one value."""
    if len(values) == 1:
        return None, None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that are nearly equal
        test = stats.ttest_1samp(values, 0.0)
        interval = test.confidence_interval(CONFIDENCE)
    p = float(test.pvalue)
    return float(interval.low), float(interval.high), 1.0 if math.isnan(p) else p  # NaN: all values are zero
