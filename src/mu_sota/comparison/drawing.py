"""How the figures of a comparison are drawn: colours and markers, names that do not touch.

A colour and a line is a family, a marker is what is matched.
"""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mu_sota.common.drawing import PAPER, SOFT

# Of the colours of Okabe and Ito, which all common kinds of colour blindness tell apart.
COLOURS = {"mu": "#0072b2", "gpt2": "#d55e00", "llama": "#009e73", "llama-tables": "#cc79a7"}
LINES: dict[str, Any] = {
    "mu": "-",
    "gpt2": (0, (5, 2)),
    "llama": (0, (5, 1.5, 1, 1.5)),
    "llama-tables": (0, (5, 1.5, 1, 1.5, 1, 1.5)),
}
# Full, hollow or half: told apart without colour, too.
FILLINGS: dict[str, dict[str, Any]] = {
    "mu": {},
    "gpt2": {},
    "llama": {"markerfacecolor": PAPER},
    "llama-tables": {"fillstyle": "bottom", "markerfacecoloralt": PAPER},
}
SHORT_LABELS = {"llama-tables": "Llama + tables"}
MARKERS = {None: "*", "params": "o", "trunk": "^", "flops": "s", "time": "D"}


def draw_point(axes: Axes, contender: dict[str, Any], x: float, y: float, **bars: Any) -> None:
    """A contender's point, with error bars."""
    mu = contender["family"] == "mu"
    axes.errorbar(
        x,
        y,
        **bars,
        color=COLOURS[contender["family"]],
        marker=MARKERS[contender["matched_on"]],
        markersize=11 if mu else 6.5,
        **FILLINGS[contender["family"]],
        markeredgewidth=0 if mu else 1.4,
        elinewidth=1.2,
        capsize=2.5,
        zorder=4 if mu else 3,
        label=contender["title"],
    )


def error_bars(summary: dict[str, Any]) -> list[list[float]] | None:
    """How far an interval reaches below and above its mean, as matplotlib wants it; None without an interval."""
    if summary["low"] is None:
        return None
    return [[summary["mean"] - summary["low"]], [summary["high"] - summary["mean"]]]


def make_room_for(axes: Axes, names: Sequence[str]) -> None:
    """Widen the figure where names beside the axes are longer than usual, so that the axes stay as wide as they are."""
    figure: Any = axes.figure
    longer = max(0, max(map(len, names)) - 20)  # letters
    figure.set_figwidth(figure.get_figwidth() + 0.065 * longer)


def write_in_margin(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names right of the axes, none over another, each with a thin line to its point.

    Args:
        points: x, y and name of each.
    """
    make_room_for(axes, [name for _, _, name in points])
    bottom, top = axes.get_ylim()
    gap = 0.075  # of the height: a line of small text
    order = sorted(points, key=lambda point: point[1])
    # The least squares way to move heights apart: names that would touch share a pool, whose middle stays.
    pools: list[tuple[float, int]] = []  # height without the gaps between names, and number of names
    for rank, (_, y, _) in enumerate(order):
        height, count = (y - bottom) / (top - bottom) - rank * gap, 1
        while pools and pools[-1][0] > height:
            below, members = pools.pop()
            height, count = (below * members + height * count) / (members + count), members + count
        pools.append((height, count))
    heights = [min(max(height, 0), 1 - gap * (len(order) - 1)) for height, count in pools for _ in range(count)]
    for rank, (x, y, name) in enumerate(order):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.08, heights[rank] + rank * gap),
            textcoords="axes fraction",
            fontsize=8,
            verticalalignment="center",
            arrowprops={
                "arrowstyle": "-",
                "color": SOFT,
                "linewidth": 0.5,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at round numbers, few enough to be read."""
    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 8 * low else (1, 2, 5) if high < 50 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def power_of_ten(largest: float) -> tuple[float, str]:
    """A number to divide by, and its words, so that numbers have at most three digits before the point."""
    power = 3 * int(math.log10(largest) // 3)
    if not power:
        return 1, ""
    return 10.0**power, f" (×10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))})"
