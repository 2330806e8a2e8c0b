"""The report of a comparison: one page that stands alone, and a short version in Markdown, both from its record."""

import math
import re
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mu_sota.common.drawing import FAINT, INK, PAPER, SOFT, Drawn, write_figures
from mu_sota.common.files import replacing
from mu_sota.common.text import duration, visible

from . import drawing, figures
from .conclusions import listed
from .questions import MATCHINGS, NON_EMBEDDING

_SI_PREFIXES = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k"}


def write(record: dict[str, Any], folder: Path) -> None:
    """Write report.html, report.md and the figures that report.md shows."""
    record = _printable(record)
    write_figures(figures.all_figures(record), folder / "figures")
    for name, text in (("report.html", html(record)), ("report.md", markdown(record))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def html(record: dict[str, Any]) -> str:
    """The report as one page, which loads nothing from elsewhere and runs no script."""
    return _render("report.html.jinja", _printable(record))


def markdown(record: dict[str, Any]) -> str:
    """The short version; it shows the figures that `write` puts beside it."""
    return _render("report.md.jinja", _printable(record))


def _render(template: str, record: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("mu_sota.comparison", ""),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": duration,
        "fixed": _fixed,
        "inline": _inline,
        "integer": partial(_fixed, digits=0),
        "interval": _interval,
        "listed": listed,
        "markdown": _markdown,
        "p_value": _p_value,
        "plain": _plain,
        "si": _si,
        "signed": partial(_fixed, sign="+"),
        "significant": _significant,
    }
    contenders = record["arms"]
    return environment.get_template(template).render(
        record=record,
        earlier=record.get("earlier_tuning"),  # which records of before have not
        contenders={one["name"]: one for one in contenders},
        references={reference["name"]: reference for reference in record["references"]},
        families=list(dict.fromkeys(one["label"] for one in contenders if one["matched_on"])),
        leaking=[one for one in contenders if not one["leak_check"]["clean"]],
        matchings=MATCHINGS,
        non_embedding=NON_EMBEDDING,
        mean=fmean,
        trials=_trials,
        differences=figures.differences(record),
        quality=figures.quality(record),
        curves={table["question"]: figures.learning_curves(record, table) for table in record["tables"]},
    )


def _printable(value: Any) -> Any:
    """The record without characters in its texts that cannot be seen or written."""
    if isinstance(value, str):
        return visible(value, spaces=False)
    if isinstance(value, dict):
        return {key: _printable(each) for key, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list) else value


def _trials(contender: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """A contender's trials, those that came furthest first: the settings, and the loss of each rung that was reached.

    Args:
        names: of the hyperparameters.
    """
    trials: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rung in contender["tuning"]:
        for trial in rung["trials"]:
            key = tuple(trial[name] for name in names)
            trials.setdefault(key, {"settings": key, "losses": []})["losses"].append(trial["loss"])

    def order(trial: dict[str, Any]) -> tuple[int, float]:
        last = trial["losses"][-1]
        return -len(trial["losses"]), math.inf if last is None else last

    return sorted(trials.values(), key=order)


# --- Numbers and texts -----------------------------------------------------------------------------------------------


def _fixed(value: float | None, digits: int = 4, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign},.{digits}f}".replace("-", "−")


def _significant(value: float | None, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "∞"
    return _fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0)


def _si(value: float) -> str:
    power = next((power for power in _SI_PREFIXES if value >= 10**power), 0)
    return f"{_significant(value / 10**power, 3)} {_SI_PREFIXES.get(power, '')}".strip()


def _interval(summary: dict[str, Any], sign: str = "") -> str:
    return "" if summary["low"] is None else f"{_fixed(summary['low'], 4, sign)} to {_fixed(summary['high'], 4, sign)}"


def _p_value(p: float | None) -> str:
    return "< 0.001" if p is not None and p < 0.001 else _fixed(p, 3)


def _plain(value: Any) -> str:
    """A setting, or a fact about the machine, as a reader would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(each) for each in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _markdown(text: str) -> str:
    """A text in Markdown, also in a table: on one line, and nothing in it has a meaning."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(text.split()))


def _inline(drawn: Drawn) -> str:
    """A figure in the page's colours, as markup: its texts are escaped."""
    names = {INK: "ink", SOFT: "soft", FAINT: "faint", PAPER: "paper"}
    names |= {colour: family for family, colour in drawing.COLOURS.items()}
    text = drawn.svg()
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return text
