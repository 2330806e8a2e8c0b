"""The figures of an inspection, read from its record."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mu_sota.common.drawing import FAINT, INK, PAPER, SOFT, STYLE, Drawn
from mu_sota.model.blocks import BLOCKS, NUM_BLOCKS

# From white to the blue of Okabe and Ito, and on to nearly black: also in grey, more is darker.
SCALE = LinearSegmentedColormap.from_list("share", [PAPER, "#8cc4e8", "#0072b2", "#00324f"])
_OWN = "#d55e00"


def colour(share: float) -> str:
    """Of a share from 0 to 1, as the page writes it."""
    return to_hex(SCALE(0.75 * min(max(share, 0.0), 1.0)))


def all_figures(record: dict[str, Any]) -> list[Drawn]:
    """Those that the record has figures for."""
    effects = [effect(record)] if "effects" in record else []
    return [legibility(record), alike(record), *effects]


def _names(record: dict[str, Any]) -> list[str]:
    return [block["name"] for block in record["blocks"]]


def _heat(axes: Axes, shares: np.ndarray, values: np.ndarray, bold: np.ndarray) -> None:
    """Cells coloured by their share, from 0 to 1, each with its value in hundredths."""
    rows, columns = values.shape
    axes.imshow(shares, cmap=SCALE, vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        axes.text(
            column,
            row,
            f"{100 * values[row, column] + 0.0:.0f}".replace("-0", "0"),
            ha="center",
            va="center",
            fontsize=7,
            fontweight="bold" if bold[row, column] else "normal",
            color=PAPER if shares[row, column] > 0.5 else INK,
        )
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color=PAPER, linewidth=1.2)


@matplotlib.rc_context(STYLE)
def legibility(record: dict[str, Any]) -> Drawn:
    """Selectivity by task and block; a task's own block is framed, the best one of all in bold."""
    names, found = _names(record), record["legibility"]
    tasks = found["tasks"]
    values = np.array([task["selectivity"] for task in tasks])
    # By the best of a task: what matters is which block it is, and tasks differ in how much can be read off at all.
    shown = np.clip(values, 0, None) / np.maximum(values.max(1, keepdims=True), 0.02)
    figure = Figure(figsize=(8.6, 1.3 + 0.27 * len(tasks)), layout="constrained")
    axes = figure.add_subplot()
    _heat(axes, 0.8 * shown, values, values == values.max(1, keepdims=True))
    for row, task in enumerate(tasks):
        own = names.index(task["block"])
        edge = _OWN if task["block"] in found["best_blocks"] else SOFT
        axes.add_patch(Rectangle((own - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=edge, linewidth=1.8))
    axes.set_xticks(range(len(names)), names, fontweight="bold")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(tasks)), [f"{task['name']}  {task['block']:>2}" for task in tasks])
    axes.set_xlabel(
        f"{len(found['best_blocks'])} of 16 blocks are the best of all at what they are named for (framed in orange). "
        f"By chance, 1.",
        color=INK,
    )
    description = "; ".join(
        f"{task['name']}, named for {task['block']}: best read off {names[int(np.argmax(task['selectivity']))]}"
        for task in tasks
    )
    return Drawn("legibility", "What can be read off each block, in hundredths of all there is", description, figure)


@matplotlib.rc_context(STYLE)
def sensitivities(means: np.ndarray) -> Drawn:
    """How far blocks move, [L, 16]: the mean over tokens, in hundredths."""
    figure = Figure(figsize=(8.0, 0.8 + 0.25 * len(means)), layout="constrained")
    axes = figure.add_subplot()
    _heat(axes, 0.75 * means, means, means == means.max(1, keepdims=True))
    axes.set_xticks(range(NUM_BLOCKS), [block.name for block in BLOCKS])
    axes.set_yticks(range(len(means)), [f"layer {number}" for number in range(1, len(means) + 1)])
    return Drawn("sensitivities", "How far each layer moves each block", "Means over tokens", figure)


@matplotlib.rc_context(STYLE)
def alike(record: dict[str, Any]) -> Drawn:
    """Linear CKA of every two blocks."""
    names, values = _names(record), np.array(record["similarity"]["cka"])
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    different = values * (1 - np.eye(len(names)))
    _heat(axes, different, values, different == different.max())
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    one, other = record["similarity"]["most_alike"]
    description = f"The most alike are {names[one]} and {names[other]}: {values[one, other]:.2f}"
    axes.set_xlabel(description, color=INK)
    return Drawn(
        "alike", "How alike two blocks are: linear CKA in hundredths, of 100 for the same", description, figure
    )


@matplotlib.rc_context(STYLE)
def effect(record: dict[str, Any]) -> Drawn:
    """By how much the loss rises where a block is replaced everywhere, with the interval."""
    names, effects = _names(record), record["effects"]
    order = [names.index(name) for name in effects["ranking"]]
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for offset, (kind, colour, marker) in enumerate(
        zip(effects["increase"], ("#0072b2", "#d55e00"), ("o", "D"), strict=True)
    ):
        figures = effects["increase"][kind]
        mean, low, high = (np.array(figures[key][-1])[order] for key in ("mean", "low", "high"))
        axes.errorbar(
            mean,
            np.arange(len(names)) + 0.24 * offset - 0.12,
            xerr=[mean - low, high - mean],
            fmt=marker,
            color=colour,
            markersize=4,
            elinewidth=1.1,
            label=kind,
        )
    axes.set_yticks(range(len(names)), effects["ranking"])
    axes.invert_yaxis()
    axes.axvline(0, color=FAINT, linewidth=0.9)
    axes.set_xlabel("rise of the loss in nats a token, 95 % interval over pieces of text")
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    ranked = ", ".join(effects["ranking"])
    return Drawn("effect", "What a block does for the loss", f"From the most to the least: {ranked}", figure)
