"""The figures of a comparison, by what matplotlib was told to draw, and the SVG that comes of it."""

import json
import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_comparison import comparison
from matplotlib.colors import to_hex
from matplotlib.text import Text

from mu_sota.comparison import figures as plots

RECORD = comparison()
MODELS = [arm for arm in RECORD["arms"] if not arm["control_of"]]


def axes_of(drawn: plots.Drawn) -> Any:
    """The axes that a figure was drawn on; the types of matplotlib leave out much of what they have."""
    return drawn.figure.axes[0]


def drawn_of(record: dict[str, Any]) -> list[plots.Drawn]:
    curves = [drawn for table in record["tables"] for drawn in plots.curves(record, table)]
    return [plots.differences(record), *plots.quality(record), *curves]


def test_every_model_has_a_name_of_its_own() -> None:
    assert len({arm["title"] for arm in RECORD["arms"]}) == len(RECORD["arms"])
    assert len({plots.short_label(arm) for arm in RECORD["arms"]}) == len(RECORD["arms"])
    assert MODELS[1]["title"] == "GPT-2, same total parameters"


@pytest.mark.parametrize("place", range(3))
def test_quality_shows_every_model_with_its_interval(place: int) -> None:
    drawn = plots.quality(RECORD)[place]
    unit = 1e12 if drawn.name == "quality-flops" else 1e6
    sizes = {
        "quality-parameters": lambda arm: arm["parameters"]["total"],
        "quality-outside": lambda arm: arm["parameters"]["outside"],
        "quality-flops": lambda arm: arm["training_flops"],
    }
    points = {bars.get_label(): bars for bars in axes_of(drawn).containers}
    assert list(points) == [arm["title"] for arm in MODELS]
    for arm in MODELS:
        (row,) = [row for table in RECORD["tables"] for row in table["rows"] if row.get("arm") == arm["name"]][:1]
        loss = row["metrics"]["loss"]
        point, _, (bar,) = points[arm["title"]].lines
        assert point.get_xydata().tolist() == [[pytest.approx(sizes[drawn.name](arm) / unit), loss["mean"]]]
        assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([loss["low"], loss["high"]])
        assert f"{arm['title']}: " in drawn.description


def test_differences_shows_every_pair_once() -> None:
    axes = axes_of(plots.differences(RECORD))
    assert [text.get_text() for text in axes.get_yticklabels()] == [plots.short_label(arm) for arm in MODELS[1:]]
    means = [
        row["difference"]["mean"]
        for table in RECORD["tables"]
        for row in table["rows"]
        if "arm" in row and row["difference"]
    ]
    assert [bars.lines[0].get_xdata()[0] for bars in axes.containers] == means


@pytest.mark.parametrize("table", RECORD["tables"], ids=lambda table: table["question"])
def test_curves_are_means_over_seeds(table: dict[str, Any]) -> None:
    for drawn in plots.curves(RECORD, table):
        lines = {line.get_label(): line for line in axes_of(drawn).lines}
        for reference in RECORD["references"]:
            assert set(lines.pop(reference["label"]).get_ydata()) == {reference["validation"]["loss"]}
        arms = plots.arms_of(RECORD, table)
        assert list(lines) == [arm["title"] for arm in arms]
        for arm in arms:
            at_end = [run["curve"][-1]["validation_loss"] for run in arm["runs"]]
            assert lines[arm["title"]].get_ydata()[-1] == pytest.approx(sum(at_end) / 3)
        assert len(axes_of(drawn).collections) == len(arms)  # a band each


def test_curves_are_against_steps_tokens_flops_and_seconds() -> None:
    by_step, by_flops, by_seconds = (axes_of(drawn) for drawn in plots.curves(RECORD, RECORD["tables"][0]))
    mu = RECORD["arms"][0]
    assert by_step.lines[0].get_xdata()[-1] == RECORD["steps"]
    assert by_flops.lines[0].get_xdata()[-1] * 1e12 == pytest.approx(mu["training_flops"])
    assert by_seconds.lines[0].get_xdata()[-1] == pytest.approx(RECORD["steps"] * mu["seconds_per_step"])
    (tokens,) = by_step.child_axes
    assert tokens.get_xlabel() == "tokens (×10³), the same for all"
    by_step.figure.draw_without_rendering()
    assert tokens.get_xlim()[1] / by_step.get_xlim()[1] == pytest.approx(RECORD["tokens"] / RECORD["steps"] / 1e3)


def test_a_family_is_a_colour_and_a_matching_is_a_marker() -> None:
    axes = axes_of(plots.quality(RECORD)[0])
    looks = [(to_hex(bars.lines[0].get_color()), bars.lines[0].get_marker()) for bars in axes.containers]
    assert looks == [(plots.COLOURS[arm["family"]], plots.MARKERS[arm["matched_on"]]) for arm in MODELS]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("beyond", [0.08, 0.2, 0.4])
def test_names_do_not_touch(beyond: float) -> None:
    """Nor do those of reference models whose losses are close to each other."""
    record = json.loads(json.dumps(RECORD))
    record["references"][-1]["validation"]["loss"] = 4.2  # below where all others end
    record["references"].append(json.loads(json.dumps(record["references"][-1])))
    record["references"][-1] |= {"label": "Kneser-Ney 5-gram, as many tokens"}
    record["references"][-1]["validation"]["loss"] += beyond
    for drawn in drawn_of(record)[1:]:
        drawn.figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in axes_of(drawn).texts]  # without the line to its point
        assert len(boxes) >= 3
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other), drawn.name
        for text, box in zip(axes_of(drawn).texts, boxes, strict=True):
            room = drawn.figure.bbox if text.arrow_patch else axes_of(drawn).bbox
            assert room.y0 <= box.y0, text
            assert box.y1 <= room.y1, text


def test_one_seed_has_neither_bars_nor_bands() -> None:
    for drawn in drawn_of(comparison(seeds=(7,), match=("flops",))):
        assert not axes_of(drawn).collections, drawn.name


def test_the_same_record_gives_the_same_bytes() -> None:
    record = comparison(match=("time",))
    again = json.loads(json.dumps(record))
    assert [drawn.svg() for drawn in drawn_of(record)] == [drawn.svg() for drawn in drawn_of(again)]


def test_an_svg_is_well_formed_stands_alone_and_says_what_it_shows() -> None:
    identifiers: list[str] = []
    for drawn in drawn_of(RECORD):
        text = drawn.svg()
        root = ElementTree.fromstring(text)
        assert [child.text for child in root[:2]] == [drawn.title, drawn.description]
        assert not re.search(r'(?:href|src)="(?!#)|url\((?!#)|[Mm]atplotlib v', text)
        found = re.findall(r'\bid="([^"]+)"', text)
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(name, "") for name in found} | {
            ("", name) for name in found
        }
        identifiers += set(found)
    assert len(identifiers) == len(set(identifiers))  # so all of them can stand in one page


def test_a_label_is_only_text() -> None:
    record = comparison(match=("flops",))
    record["arms"][1]["label"] = "<b>$x_1$ & co"
    (name,) = [
        text for text in ElementTree.fromstring(plots.quality(record)[0].svg()).itertext() if "co, same FLOPs" in text
    ]
    assert name == "<b>$x_1$ & co, same FLOPs"
