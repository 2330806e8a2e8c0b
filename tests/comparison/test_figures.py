"""The figures of a comparison, by the lines and points that matplotlib drew."""

from typing import Any

import pytest
from made_up_comparison import comparison
from matplotlib.colors import to_hex

from mu_sota.common.drawing import PAPER, Drawn
from mu_sota.comparison import figures
from mu_sota.comparison.drawing import COLOURS, MARKERS

RECORD = comparison()
CONTENDERS = [one for one in RECORD["arms"] if not one["control_of"]]


def axes_of(drawn: Drawn) -> Any:
    """The axes that a figure was drawn on; the types of matplotlib leave out much of what they have."""
    return drawn.figure.axes[0]


def test_every_model_has_a_name_of_its_own() -> None:
    assert len({one["title"] for one in RECORD["arms"]}) == len(RECORD["arms"])
    assert len({figures.short_label(one) for one in RECORD["arms"]}) == len(RECORD["arms"])
    assert CONTENDERS[1]["title"] == "GPT-2, same total parameters"


@pytest.mark.parametrize("number", range(3))
def test_quality_shows_every_model_with_its_interval(number: int) -> None:
    drawn = figures.quality(RECORD)[number]
    unit = 1e12 if drawn.name == "quality-flops" else 1e6
    sizes = {
        "quality-parameters": lambda one: one["parameters"]["total"],
        "quality-outside": lambda one: one["parameters"]["outside"],
        "quality-flops": lambda one: one["training_flops"],
    }
    points = {bars.get_label(): bars for bars in axes_of(drawn).containers}
    assert list(points) == [one["title"] for one in CONTENDERS]
    for one in CONTENDERS:
        (row,) = [row for table in RECORD["tables"] for row in table["rows"] if row.get("arm") == one["name"]][:1]
        loss = row["metrics"]["loss"]
        point, _, (bar,) = points[one["title"]].lines
        assert point.get_xydata().tolist() == [[pytest.approx(sizes[drawn.name](one) / unit), loss["mean"]]]
        assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([loss["low"], loss["high"]])
        assert f"{one['title']}: " in drawn.description


def test_differences_shows_every_pair_once() -> None:
    axes = axes_of(figures.differences(RECORD))
    assert [text.get_text() for text in axes.get_yticklabels()] == [figures.short_label(one) for one in CONTENDERS[1:]]
    means = [
        row["difference"]["mean"]
        for table in RECORD["tables"]
        for row in table["rows"]
        if "arm" in row and row["difference"]
    ]
    assert [bars.lines[0].get_xdata()[0] for bars in axes.containers] == means


@pytest.mark.parametrize("table", RECORD["tables"], ids=lambda table: table["question"])
def test_curves_are_means_over_seeds(table: dict[str, Any]) -> None:
    for drawn in figures.learning_curves(RECORD, table):
        lines = {line.get_label(): line for line in axes_of(drawn).lines}
        for reference in RECORD["references"]:
            assert set(lines.pop(reference["label"]).get_ydata()) == {reference["validation"]["loss"]}
        contenders = figures.contenders_of(RECORD, table)
        assert list(lines) == [one["title"] for one in contenders]
        for one in contenders:
            at_end = [run["curve"][-1]["validation_loss"] for run in one["runs"]]
            assert lines[one["title"]].get_ydata()[-1] == pytest.approx(sum(at_end) / 3)
        assert len(axes_of(drawn).collections) == len(contenders)  # a band each


def test_curves_are_against_steps_tokens_flops_and_seconds() -> None:
    by_step, by_flops, by_seconds = (axes_of(drawn) for drawn in figures.learning_curves(RECORD, RECORD["tables"][0]))
    mu = RECORD["arms"][0]
    assert by_step.lines[0].get_xdata()[-1] == RECORD["steps"]
    assert by_flops.lines[0].get_xdata()[-1] * 1e12 == pytest.approx(mu["training_flops"])
    assert by_seconds.lines[0].get_xdata()[-1] == pytest.approx(RECORD["steps"] * mu["seconds_per_step"])
    (tokens,) = by_step.child_axes
    assert tokens.get_xlabel() == "tokens (×10³), the same for all"
    by_step.figure.draw_without_rendering()
    assert tokens.get_xlim()[1] / by_step.get_xlim()[1] == pytest.approx(RECORD["tokens"] / RECORD["steps"] / 1e3)


def test_a_family_is_a_colour_and_a_matching_is_a_marker() -> None:
    axes = axes_of(figures.quality(RECORD)[0])
    looks = [(to_hex(bars.lines[0].get_color()), bars.lines[0].get_marker()) for bars in axes.containers]
    assert looks == [(COLOURS[one["family"]], MARKERS[one["matched_on"]]) for one in CONTENDERS]
    assert len(set(looks)) == len(looks)
    points = [bars.lines[0] for bars in axes.containers]
    shapes = {(one.get_marker(), one.get_fillstyle(), one.get_markerfacecolor() == PAPER) for one in points}
    assert len(shapes) == len(looks), "told apart without colour, too"


def test_one_seed_has_neither_bars_nor_bands() -> None:
    for drawn in figures.all_figures(comparison(seeds=(7,), match=("flops",))):
        assert not axes_of(drawn).collections, drawn.name
