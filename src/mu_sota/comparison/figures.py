"""The figures of a comparison: the differences, how the models learn, and what sizes and FLOPs buy.

Everything is read from one record, `comparison.json`; how it looks is in `drawing.py`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import mul
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mu_sota.common.drawing import INK, SOFT, STYLE, Drawn

from .drawing import (
    COLOURS,
    FILLINGS,
    LINES,
    MARKERS,
    SHORT_LABELS,
    draw_point,
    error_bars,
    log_ticks,
    make_room_for,
    power_of_ten,
    write_in_margin,
)
from .questions import MATCHINGS


def all_figures(record: dict[str, Any]) -> list[Drawn]:
    """Every figure of a report."""
    curves = [drawn for table in record["tables"] for drawn in learning_curves(record, table)]
    return [differences(record), *quality(record), *curves]


def short_label(contender: dict[str, Any]) -> str:
    """A contender's name inside a figure, where its title is too long."""
    matched, label = contender["matched_on"], _label(contender)
    return f"{label}, {MATCHINGS[matched].short_title}" if matched else label


def _label(contender: dict[str, Any]) -> str:
    """A contender's label, or a short one."""
    label: str = contender["label"]
    return SHORT_LABELS.get(contender["family"], label)


def contenders_of(record: dict[str, Any], table: dict[str, Any]) -> list[dict[str, Any]]:
    """The contenders of one question, in the order of its table."""
    contenders = {one["name"]: one for one in record["arms"]}
    return [contenders[row["arm"]] for row in table["rows"] if "arm" in row]


@matplotlib.rc_context(STYLE)
def differences(record: dict[str, Any]) -> Drawn:
    """MU's test loss minus that of every other contender, with the interval."""
    contenders = {one["name"]: one for one in record["arms"]}
    rows = [row for table in record["tables"] for row in table["rows"] if row["difference"] and "arm" in row]
    figure = Figure(figsize=(4.6, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    descriptions = []
    for height, row in enumerate(rows):
        contender, difference = contenders[row["arm"]], row["difference"]
        draw_point(axes, contender, difference["mean"], height, xerr=error_bars(difference))
        descriptions.append(f"{contender['title']} {difference['mean']:+.4f}, {difference['verdict']}")
    axes.axvline(0, color=INK, linewidth=0.9)
    names = [short_label(contenders[row["arm"]]) for row in rows]
    make_room_for(axes, names)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    reach = max(abs(edge) for edge in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("MU's test loss minus the other's, nats a token")
    axes.set_title("← MU better", loc="left", fontsize=9, color=SOFT)
    axes.set_title("MU worse →", loc="right", fontsize=9, color=SOFT)
    title = "Test loss of MU minus that of each other model"
    return Drawn("differences", title, "; ".join(descriptions) + ".", figure)


def learning_curves(record: dict[str, Any], table: dict[str, Any]) -> list[Drawn]:
    """Validation loss of a question's contenders while they train: against steps and tokens, FLOPs, and seconds."""
    return [_learning_curve(record, table, quantity) for quantity in ("step", "flops", "seconds")]


@matplotlib.rc_context(STYLE)
def _learning_curve(record: dict[str, Any], table: dict[str, Any], quantity: str) -> Drawn:
    contenders = [one for one in contenders_of(record, table) if all(run["curve"] for run in one["runs"])]
    curves = {one["name"]: _curve_points(one, quantity) for one in contenders}
    unit, power = power_of_ten(max(x[-1] for x, _ in curves.values()) if quantity == "flops" else 1)
    words = {"step": "steps", "flops": f"training FLOPs{power}", "seconds": "seconds, at the timed rate"}[quantity]
    figure = Figure(figsize=(3.7, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ends = []
    for one in contenders:
        x, losses = curves[one["name"]]
        x = [value / unit for value in x]
        mean = _draw_curve(axes, one, x, losses)
        alone = sum(other["label"] == one["label"] for other in contenders) == 1
        ends.append((x[-1], mean[-1], _label(one) if alone else short_label(one)))
    _draw_references(axes, record["references"])
    write_in_margin(axes, ends)
    axes.set(xlabel=words, ylabel="validation loss, nats a token")
    log_ticks(axes.xaxis)
    if quantity == "step":
        _add_token_axis(axes, record)
        words += " and tokens"
    losses_at_end = "; ".join(f"{name} ends at {loss:.4f}" for _, loss, name in ends)
    flat = "".join(f"; {one['label']} {one['validation']['loss']:.4f}" for one in record["references"])
    name = f"curves-{table['question']}-{quantity}"
    return Drawn(name, f"{table['title']}: validation loss against {words}", f"{losses_at_end}{flat}.", figure)


def _curve_points(contender: dict[str, Any], quantity: str) -> tuple[list[float], list[list[float]]]:
    """The quantity at every point, as far as all runs go (one that diverged ends early), and the losses of each run."""
    shortest = min((run["curve"] for run in contender["runs"]), key=len)
    x = [row["step"] * contender["seconds_per_step"] if quantity == "seconds" else row[quantity] for row in shortest]
    return x, [[row["validation_loss"] for row in run["curve"]] for run in contender["runs"]]


def _draw_curve(
    axes: Axes, contender: dict[str, Any], x: Sequence[float], losses: Sequence[Sequence[float]]
) -> list[float]:
    """The mean over seeds as a line, from the lowest to the highest seed as a band; returns the mean."""
    family = contender["family"]
    by_point: Iterable[tuple[float, ...]] = list(zip(*losses, strict=False))
    mean = [fmean(values) for values in by_point]
    axes.plot(
        *(x, mean),
        color=COLOURS[family],
        linestyle=LINES[family],
        linewidth=2 if family == "mu" else 1.5,
        marker=MARKERS[contender["matched_on"]],
        markevery=[-1],
        markersize=9 if family == "mu" else 5.5,
        **FILLINGS[family],
        label=contender["title"],
    )
    if len(losses) > 1:
        low, high = zip(*((min(values), max(values)) for values in by_point), strict=True)
        axes.fill_between(x, low, high, color=COLOURS[family], alpha=0.2, linewidth=0)
    return mean


def _draw_references(axes: Axes, references: Sequence[dict[str, Any]]) -> None:
    """Dotted lines, named where falling curves leave space: the upper ones at the right, the lower ones at the left."""
    losses = [reference["validation"]["loss"] for reference in references]
    for reference, loss in zip(references, losses, strict=True):
        axes.axhline(loss, color=SOFT, linewidth=1, linestyle=":", label=reference["label"])
    axes.margins(y=0.1)  # for the names of the outer ones
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


def _add_token_axis(axes: Axes, record: dict[str, Any]) -> None:
    unit, power = power_of_ten(record["tokens"])
    per_step = record["tokens"] / record["steps"] / unit
    above = axes.secondary_xaxis("top", functions=(partial(mul, per_step), partial(mul, 1 / per_step)))
    above.set_xlabel(f"tokens{power}, the same for all")
    log_ticks(above.xaxis)


def quality(record: dict[str, Any]) -> list[Drawn]:
    """Test loss of every contender against its size, counted in two ways, and against what its training cost."""
    return [
        _scatter(record, "parameters", "total parameters", lambda one: one["parameters"]["total"]),
        _scatter(record, "outside", "non-embedding parameters", lambda one: one["parameters"]["outside"]),
        _scatter(record, "flops", "training FLOPs", lambda one: one["training_flops"]),
    ]


@matplotlib.rc_context(STYLE)
def _scatter(record: dict[str, Any], name: str, words: str, size: Callable[[dict[str, Any]], float]) -> Drawn:
    losses = {row["arm"]: row["metrics"]["loss"] for table in record["tables"] for row in table["rows"] if "arm" in row}
    contenders = [one for one in record["arms"] if one["name"] in losses]
    unit, power = power_of_ten(max(size(one) for one in contenders))
    figure = Figure(figsize=(3.9, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    points = []
    for one in contenders:
        loss = losses[one["name"]]
        draw_point(axes, one, size(one) / unit, loss["mean"], yerr=error_bars(loss))
        points.append((size(one) / unit, loss["mean"], short_label(one)))
    axes.margins(y=0.08)
    low, high = min(x for x, _, _ in points), max(x for x, _, _ in points)
    beside = max(1.15, 1.75 / math.sqrt(high / low))  # at least a factor of 3 from edge to edge: nearly equal is equal
    axes.set_xlim(low / beside, high * beside)
    write_in_margin(axes, points)
    axes.set(xlabel=f"{words}{power}", ylabel="test loss, nats a token")
    log_ticks(axes.xaxis)
    sizes = "; ".join(f"{one['title']}: {size(one):,.0f}, loss {losses[one['name']]['mean']:.4f}" for one in contenders)
    return Drawn(f"quality-{name}", f"Test loss against {words}", f"{sizes}.", figure)
