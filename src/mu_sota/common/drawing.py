"""Figures as SVG: one style, the same bytes for the same figure, and words for those who do not see it."""

import io
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from .files import replacing

INK, SOFT, FAINT, PAPER = "#1a2230", "#5a6577", "#d9dee6", "#ffffff"

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


class Drawn(NamedTuple):
    """A figure, with a title and a description for those who do not see it."""

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
            f'{head} role="img" aria-labelledby="{self.name}-title {self.name}-description">\n'
            f' <title id="{self.name}-title">{escape(self.title)}</title>\n'
            f' <desc id="{self.name}-description">{escape(self.description)}</desc>{body}'
        )


def write_figures(figures: Iterable[Drawn], folder: Path) -> None:
    """Write each figure as NAME.svg into a folder, in the place of what was there."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        for drawn in figures:
            (temporary / f"{drawn.name}.svg").write_text(drawn.svg(), encoding="utf-8")
