"""The figures of a comparison as SVG: the differences, how the models learn, and what sizes and FLOPs buy.

Everything is read from one record, `comparison.json`. A colour and a line is a family, a marker is what is matched.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from operator import mul
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, SOFT, FAINT, PAPER = "#1a2230", "#5a6577", "#d9dee6", "#ffffff"
# Of the colours of Okabe and Ito, which all common kinds of colour blindness tell apart.
COLOURS = {"mu": "#0072b2", "gpt2": "#d55e00", "llama": "#009e73"}
LINES: dict[str, Any] = {"mu": "-", "gpt2": (0, (5, 2)), "llama": (0, (5, 1.5, 1, 1.5))}
MARKERS = {None: "*", "params": "o", "trunk": "^", "flops": "s", "time": "D"}

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mu-sota",  # the same figures give the same file
    "svg.fonttype": "none",  # text stays text, to be searched and read aloud
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}

_SAME = {"params": "same total", "trunk": "same outside", "flops": "same FLOPs", "time": "same time"}


class Drawn(NamedTuple):
    """A figure, with what it says to those who do not see it."""

    name: str
    title: str
    description: str
    figure: Figure

    def svg(self) -> str:
        """The figure as an SVG element: the same bytes for the same record, and no identifier of another figure."""
        written = io.StringIO()
        with matplotlib.rc_context(STYLE):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(written, format="svg", metadata=nothing)
        text = written.getvalue()
        head, body = text[text.index("<svg") :].split(">", 1)
        body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{self.name}-", body)
        return (
            f'{head} role="img" aria-labelledby="{self.name}-title {self.name}-says">\n'
            f' <title id="{self.name}-title">{escape(self.title)}</title>\n'
            f' <desc id="{self.name}-says">{escape(self.description)}</desc>{body}'
        )


def short_label(arm: dict[str, Any]) -> str:
    """A model's name inside a figure, where its title is too long."""
    return f"{arm['label']}, {_SAME[arm['matched_on']]}" if arm["matched_on"] else arm["label"]


def arms_of(record: dict[str, Any], table: dict[str, Any]) -> list[dict[str, Any]]:
    """The trained models of one question, in the order of its table."""
    arms = {arm["name"]: arm for arm in record["arms"]}
    return [arms[row["arm"]] for row in table["rows"] if "arm" in row]


@matplotlib.rc_context(STYLE)
def differences(record: dict[str, Any]) -> Drawn:
    """Of every model, how far MU's test loss is from its own, with the interval."""
    arms = {arm["name"]: arm for arm in record["arms"]}
    rows = [row for table in record["tables"] for row in table["rows"] if row["difference"] and "arm" in row]
    figure = Figure(figsize=(4.6, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    said = []
    for height, row in enumerate(rows):
        arm, difference = arms[row["arm"]], row["difference"]
        _point(axes, arm, difference["mean"], height, xerr=_bars(difference))
        said.append(f"{arm['title']} {difference['mean']:+.4f}, {difference['verdict']}")
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(rows)), [short_label(arms[row["arm"]]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    reach = max(abs(edge) for edge in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("MU's test loss minus the other's, nats a token")
    axes.set_title("← MU better", loc="left", fontsize=9, color=SOFT)
    axes.set_title("MU worse →", loc="right", fontsize=9, color=SOFT)
    return Drawn("differences", "Test loss of MU minus that of each other model", "; ".join(said) + ".", figure)


def curves(record: dict[str, Any], table: dict[str, Any]) -> list[Drawn]:
    """Validation loss of a question's models while they train: against steps and tokens, FLOPs, and seconds."""
    return [_curve(record, table, quantity) for quantity in ("step", "flops", "seconds")]


@matplotlib.rc_context(STYLE)
def _curve(record: dict[str, Any], table: dict[str, Any], quantity: str) -> Drawn:
    arms = [arm for arm in arms_of(record, table) if all(run["curve"] for run in arm["runs"])]
    drawn = {
        arm["name"]: (
            # A training that diverged has fewer points: the mean goes as far as all do.
            [
                row["step"] * arm["seconds_per_step"] if quantity == "seconds" else row[quantity]
                for row in min((run["curve"] for run in arm["runs"]), key=len)
            ],
            [[row["validation_loss"] for row in run["curve"]] for run in arm["runs"]],
        )
        for arm in arms
    }
    unit, power = _unit(max(x[-1] for x, _ in drawn.values()) if quantity == "flops" else 1)
    words = {"step": "steps", "flops": f"training FLOPs{power}", "seconds": "seconds, at the timed rate"}[quantity]
    figure = Figure(figsize=(3.7, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ends = []
    for arm in arms:
        x, losses = drawn[arm["name"]]
        x = [value / unit for value in x]
        mean = [_mean(values) for values in zip(*losses, strict=False)]
        colour = COLOURS[arm["family"]]
        axes.plot(
            *(x, mean),
            color=colour,
            linestyle=LINES[arm["family"]],
            linewidth=2 if arm["family"] == "mu" else 1.5,
            marker=MARKERS[arm["matched_on"]],
            markevery=[-1],
            markersize=9 if arm["family"] == "mu" else 5.5,
            markerfacecolor=PAPER if arm["family"] == "llama" else None,  # hollow: told apart without colour, too
            label=arm["title"],
        )
        if len(losses) > 1:
            low, high = zip(*((min(values), max(values)) for values in zip(*losses, strict=False)), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        alone = sum(other["label"] == arm["label"] for other in arms) == 1
        ends.append((x[-1], mean[-1], arm["label"] if alone else short_label(arm)))
    _draw_references(axes, record["references"])
    _name_in_margin(axes, ends)
    axes.set(xlabel=words, ylabel="validation loss, nats a token")
    _log_ticks(axes.xaxis)
    if quantity == "step":
        unit, power = _unit(record["tokens"])
        per_step = record["tokens"] / record["steps"] / unit
        above = axes.secondary_xaxis("top", functions=(partial(mul, per_step), partial(mul, 1 / per_step)))
        above.set_xlabel(f"tokens{power}, the same for all")
        _log_ticks(above.xaxis)
        words += " and tokens"
    said = "; ".join(f"{name} ends at {loss:.4f}" for _, loss, name in ends)
    flat = "".join(f"; {one['label']} {one['validation']['loss']:.4f}" for one in record["references"])
    name = f"curves-{table['question']}-{quantity}"
    return Drawn(name, f"{table['title']}: validation loss against {words}", f"{said}{flat}.", figure)


def _draw_references(axes: Axes, references: Sequence[dict[str, Any]]) -> None:
    """Dotted lines, named where falling curves leave room: the upper ones at the right, the lower ones at the left."""
    losses = [reference["validation"]["loss"] for reference in references]
    for reference, loss in zip(references, losses, strict=True):
        axes.axhline(loss, color=SOFT, linewidth=1, linestyle=":", label=reference["label"])
    axes.margins(y=0.1)  # room for the names of the outer ones
    bottom, top = axes.get_ylim()
    for reference, loss in zip(references, losses, strict=True):
        right = loss > (bottom + top) / 2
        crowded = any(0 < loss - other < 0.06 * (top - bottom) for other in losses)  # a line where the name would be
        axes.annotate(
            reference["label"],
            xy=(1 if right else 0.015, loss),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 2 if right or crowded else -1.5),
            textcoords="offset points",
            horizontalalignment="right" if right else "left",
            verticalalignment="bottom" if right or crowded else "top",
            fontsize=7.5,
            color=SOFT,
        )


def quality(record: dict[str, Any]) -> list[Drawn]:
    """Test loss of every model against its size, counted in two ways, and against what its training cost."""
    return [
        _scatter(record, "parameters", "total parameters", lambda arm: arm["parameters"]["total"]),
        _scatter(
            record, "outside", "parameters outside embedding and tables", lambda arm: arm["parameters"]["outside"]
        ),
        _scatter(record, "flops", "training FLOPs", lambda arm: arm["training_flops"]),
    ]


@matplotlib.rc_context(STYLE)
def _scatter(record: dict[str, Any], name: str, words: str, size: Callable[[dict[str, Any]], float]) -> Drawn:
    losses = {row["arm"]: row["metrics"]["loss"] for table in record["tables"] for row in table["rows"] if "arm" in row}
    arms = [arm for arm in record["arms"] if arm["name"] in losses]
    unit, power = _unit(max(size(arm) for arm in arms))
    figure = Figure(figsize=(3.9, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    points = []
    for arm in arms:
        loss = losses[arm["name"]]
        _point(axes, arm, size(arm) / unit, loss["mean"], yerr=_bars(loss))
        points.append((size(arm) / unit, loss["mean"], short_label(arm)))
    axes.margins(y=0.08)
    low, high = min(x for x, _, _ in points), max(x for x, _, _ in points)
    beside = max(1.15, 1.75 / math.sqrt(high / low))  # at least a factor of 3 from edge to edge: nearly equal is equal
    axes.set_xlim(low / beside, high * beside)
    _name_in_margin(axes, points)
    axes.set(xlabel=f"{words}{power}", ylabel="test loss, nats a token")
    _log_ticks(axes.xaxis)
    said = "; ".join(f"{arm['title']}: {size(arm):,.0f}, loss {losses[arm['name']]['mean']:.4f}" for arm in arms)
    return Drawn(f"quality-{name}", f"Test loss against {words}", f"{said}.", figure)


def _point(axes: Axes, arm: dict[str, Any], x: float, y: float, **bars: Any) -> None:
    mine = arm["family"] == "mu"
    axes.errorbar(
        *(x, y),
        **bars,
        color=COLOURS[arm["family"]],
        marker=MARKERS[arm["matched_on"]],
        markersize=11 if mine else 6.5,
        markerfacecolor=PAPER if arm["family"] == "llama" else None,
        markeredgewidth=0 if mine else 1.4,
        elinewidth=1.2,
        capsize=2.5,
        zorder=4 if mine else 3,
        label=arm["title"],
    )


def _bars(summary: dict[str, Any]) -> list[list[float]] | None:
    """How far an interval reaches below and above its mean, as error bars want it; None where there is none."""
    if summary["low"] is None:
        return None
    return [[summary["mean"] - summary["low"]], [summary["high"] - summary["mean"]]]


def _name_in_margin(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names right of the axes, none over another, each with a thin line to its point."""
    bottom, top = axes.get_ylim()
    gap = 0.075  # of the height: a line of small text
    order = sorted(points, key=lambda point: point[1])
    # The least squares way to move heights apart: names that would touch share a pool, whose middle stays.
    pools: list[tuple[float, int]] = []
    for rank, (_, y, _) in enumerate(order):
        place, count = (y - bottom) / (top - bottom) - rank * gap, 1
        while pools and pools[-1][0] > place:
            below, members = pools.pop()
            place, count = (below * members + place * count) / (members + count), members + count
        pools.append((place, count))
    places = [min(max(place, 0), 1 - gap * (len(order) - 1)) for place, count in pools for _ in range(count)]
    for rank, (x, y, name) in enumerate(order):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.08, places[rank] + rank * gap),
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


def _log_ticks(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 8 * low else (1, 2, 5) if high < 50 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _unit(largest: float) -> tuple[float, str]:
    """(what to divide by, how to say so), so that numbers have at most three digits before the point."""
    power = 3 * int(math.log10(largest) // 3)
    return (
        (10.0**power, f" (×10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))})") if power else (1, "")
    )


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
