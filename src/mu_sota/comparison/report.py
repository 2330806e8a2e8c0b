"""The report of a comparison: one page that stands alone, and a short version in Markdown, both from its record."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mu_sota.common.files import replacing
from mu_sota.common.text import visible

from . import figures as plots

_SI = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k"}
_MATCHED = {
    "params": "total parameters",
    "trunk": "parameters outside",
    "flops": "FLOPs a token",
    "time": "seconds a step",
}


def write(record: dict[str, Any], folder: Path) -> None:
    """Write report.html, report.md and the figures that report.md shows."""
    record = _readable(record)
    with replacing(folder / "figures") as figures:
        figures.mkdir()
        for drawn in _all_figures(record):
            (figures / f"{drawn.name}.svg").write_text(drawn.svg(), encoding="utf-8")
    for name, text in (("report.html", html(record)), ("report.md", markdown(record))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def html(record: dict[str, Any]) -> str:
    """The whole report as one page, which loads nothing from elsewhere and runs no script."""
    return _render("report.html.jinja", _readable(record))


def markdown(record: dict[str, Any]) -> str:
    """The short version; it shows the figures that `write` puts beside it."""
    return _render("report.md.jinja", _readable(record))


def _render(template: str, record: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("mu_sota.comparison", ""),
        autoescape=template == "report.html.jinja",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": _cell,
        "chance": _chance,
        "duration": _duration,
        "fixed": _fixed,
        "inline": _inline,
        "interval": _interval,
        "plain": _plain,
        "si": _si,
        "significant": _significant,
        "signed": partial(_fixed, sign="+"),
        "whole": partial(_fixed, digits=0),
    }
    arms = {arm["name"]: arm for arm in record["arms"]}
    return environment.get_template(template).render(
        record=record,
        arms=arms,
        references={reference["name"]: reference for reference in record["references"]},
        families=list(dict.fromkeys(arm["label"] for arm in record["arms"] if arm["matched_on"])),
        leaking=[arm for arm in record["arms"] if not arm["leak_check"]["clean"]],
        matched=_MATCHED,
        mean=lambda values: sum(values) / len(values),
        trials=_trials,
        differences=plots.differences(record),
        quality=plots.quality(record),
        curves={table["question"]: plots.curves(record, table) for table in record["tables"]},
    )


def _all_figures(record: dict[str, Any]) -> list[plots.Drawn]:
    curves = [drawn for table in record["tables"] for drawn in plots.curves(record, table)]
    return [plots.differences(record), *plots.quality(record), *curves]


def _readable(value: Any) -> Any:
    """The record, its texts without characters that cannot be seen or written."""
    if isinstance(value, str):
        return visible(value, spaces=False)
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, list) else value


def _trials(arm: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """A model's trials, those that came furthest first: the settings, and the loss of each rung that was reached."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rung in arm["tuning"]:
        for trial in rung["trials"]:
            key = tuple(trial[name] for name in names)
            found.setdefault(key, {"settings": key, "losses": []})["losses"].append(trial["loss"])

    def order(trial: dict[str, Any]) -> tuple[int, float]:
        last = trial["losses"][-1]
        return -len(trial["losses"]), math.inf if last is None else last

    return sorted(found.values(), key=order)


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
    power = next((power for power in _SI if value >= 10**power), 0)
    return f"{_significant(value / 10**power, 3)} {_SI.get(power, '')}".strip()


def _interval(summary: dict[str, Any], sign: str = "") -> str:
    return "" if summary["low"] is None else f"{_fixed(summary['low'], 4, sign)} to {_fixed(summary['high'], 4, sign)}"


def _chance(p: float | None) -> str:
    return "< 0.001" if p is not None and p < 0.001 else _fixed(p, 3)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _plain(value: Any) -> str:
    """A setting, or what a record says of the machine, as a reader would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(each) for each in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """A text in Markdown, also in a table: on one line, and nothing in it means anything."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(text.split()))


def _inline(drawn: plots.Drawn) -> str:
    """A figure in the page's colours, as markup: its texts are escaped."""
    names = {plots.INK: "ink", plots.SOFT: "soft", plots.FAINT: "faint", plots.PAPER: "paper"}
    names |= {colour: family for family, colour in plots.COLOURS.items()}
    text = drawn.svg()
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return text
