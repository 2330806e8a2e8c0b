"""How figures are drawn: names that do not touch, and SVG that is well-formed and the same each time."""

import json
import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_comparison import comparison
from matplotlib.text import Text

from mu_sota.comparison import figures

RECORD = comparison()


@pytest.mark.parametrize("beyond", [0.08, 0.2, 0.4])
def test_names_do_not_touch(beyond: float) -> None:
    """Nor do those of reference models whose losses are close to each other."""
    record = json.loads(json.dumps(RECORD))
    record["references"][-1]["validation"]["loss"] = 4.2  # below where all others end
    record["references"].append(json.loads(json.dumps(record["references"][-1])))
    record["references"][-1] |= {"label": "Kneser-Ney 5-gram, as many tokens"}
    record["references"][-1]["validation"]["loss"] += beyond
    for drawn in figures.all_figures(record)[1:]:
        axes: Any = drawn.figure.axes[0]
        drawn.figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to its point
        assert len(boxes) >= 3
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other), drawn.name
        for text, box in zip(axes.texts, boxes, strict=True):
            bounds = drawn.figure.bbox if text.arrow_patch else axes.bbox
            assert bounds.y0 <= box.y0, text
            assert box.y1 <= bounds.y1, text


def test_the_same_record_gives_the_same_bytes() -> None:
    record = comparison(match=("time",))
    again = json.loads(json.dumps(record))
    assert [drawn.svg() for drawn in figures.all_figures(record)] == [
        drawn.svg() for drawn in figures.all_figures(again)
    ]


def test_an_svg_is_well_formed_with_title_and_description_and_loads_nothing() -> None:
    identifiers: list[str] = []
    for drawn in figures.all_figures(RECORD):
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


def test_a_label_is_escaped() -> None:
    record = comparison(match=("flops",))
    record["arms"][1]["label"] = "<b>$x_1$ & co"
    (name,) = [
        text for text in ElementTree.fromstring(figures.quality(record)[0].svg()).itertext() if "co, same FLOPs" in text
    ]
    assert name == "<b>$x_1$ & co, same FLOPs"
