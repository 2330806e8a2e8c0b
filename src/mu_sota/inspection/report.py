"""What an inspection leaves: its record, one page that stands alone, and figures."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mu_sota.common.drawing import write_figures
from mu_sota.common.files import replacing, write_json
from mu_sota.common.text import visible
from mu_sota.model.blocks import NUM_BLOCKS
from mu_sota.saved.run_record import INSPECTION_FILE

from . import figures
from .steering import PROPERTIES

PAGE_FILE, FIGURES_FOLDER = "index.html", "figures"


def write(record: dict[str, Any], folder: Path) -> None:
    """Write record, page and figures of an inspection into a folder; what an earlier one left there is replaced."""
    write_json(folder / INSPECTION_FILE, record)
    write_figures(figures.all_figures(record), folder / FIGURES_FOLDER)
    with replacing(folder / PAGE_FILE) as temporary:
        temporary.write_text(page(record), encoding="utf-8")


def summary(record: dict[str, Any]) -> str:
    """The result in a few lines."""
    found, names = record["legibility"], [block["name"] for block in record["blocks"]]
    best = found["best_blocks"]
    low, high = (round(NUM_BLOCKS * end) for end in (found["low"], found["high"]))
    one, other = record["similarity"]["most_alike"]
    lines = [
        f"Legibility, after layer {record['layer']}: {len(best)} of {NUM_BLOCKS} blocks are the best at what they are "
        f"named for (95 % interval over documents {low} to {high}; by chance 1): {', '.join(best) or 'none'}",
        f"Most alike: {names[one]} and {names[other]}, CKA {record['similarity']['cka'][one][other]:.2f}",
    ]
    if "effects" in record:
        lines.append(f"Most needed, by the rise of the loss without it: {', '.join(record['effects']['ranking'][:5])}")
    if record["not_asked"]:
        lines.append(f"Not asked, for want of labels: {', '.join(record['not_asked'])}")
    return "\n".join(lines)


def page(record: dict[str, Any]) -> str:
    """The page: it loads nothing from elsewhere and runs no script."""
    environment = Environment(
        loader=PackageLoader("mu_sota.inspection", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "colour": figures.colour}
    names = [block["name"] for block in record["blocks"]]
    drawn = {figure.name: figure.svg() for figure in figures.all_figures(record)}
    tasks = {name: [task for task in record["legibility"]["tasks"] if task["block"] == name] for name in names}
    more = {"names": names, "drawn": drawn, "tasks": tasks, "properties": PROPERTIES}
    template = environment.get_template("page.html.jinja")
    return template.render(record=record, summary=summary(record).splitlines(), **more)
