"""The report of a comparison: what is in it, that it stands alone, and how a browser shows and prints it."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_comparison import comparison

from mu_sota.comparison import report
from mu_sota.comparison.conclusions import conclude

MARKUP = "<img src=x onerror=alert(1)> \"quoted\" 'too' `code` a | b"
HOSTILE = MARKUP + "\n```\n| c | \x00\u202e\ud800 {{ record }} $x$ &amp; <!--"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text of an HTML page; and whether everything that was opened was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.css = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.css += data
        else:
            self.text += data

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


RECORD = comparison()
HTML = report.html(RECORD)
PAGE = Page(HTML)
SMALL = comparison(seeds=(7,), match=("flops",), controls=False)


def rows_of(markdown: str) -> list[list[str]]:
    """The cells of all rows of all tables, and that each row has as many as the head of its table."""
    found: list[list[str]] = []
    width = 0
    for line in markdown.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        assert cells[0] == cells[-1] == ""
        width = width or len(cells)
        assert len(cells) == width, line
        found.append(cells[1:-1])
    return found


# --- What is in it --------------------------------------------------------------------------------------------------


def test_the_conclusions_come_first() -> None:
    positions = [PAGE.text.index(sentence) for sentence in RECORD["verdict"]]
    heads = ("How to read this", "MU's parameters", "Results", "Figures", "Controls", "Tuning", "Samples")
    positions += [PAGE.text.index(f"\n{head}\n") for head in (*heads, "How it was made")]
    assert positions == sorted(positions)


@pytest.mark.parametrize("one", RECORD["arms"], ids=lambda one: one["name"])
def test_every_model_is_shown_with_its_numbers(one: dict[str, Any]) -> None:
    assert one["title"] in PAGE.text
    if one["control_of"]:
        return
    expected = [f"{run['test']['loss']:.4f}" for run in one["runs"]]
    expected += [f"{one['parameters'][part]:,}" for part in ("total", "outside")]
    expected += [f"{one['seconds_per_step']:.3g}", *one["samples"]]
    assert [text for text in expected if text not in PAGE.text] == []


def test_every_difference_is_shown_with_its_interval() -> None:
    markdown = report.markdown(RECORD)
    differences = [row["difference"] for table in RECORD["tables"] for row in table["rows"] if row["difference"]]
    for difference in differences + [control["difference"] for control in RECORD["controls"]]:
        mean, low, high = (f"{difference[key]:+.4f}".replace("-", "−") for key in ("mean", "low", "high"))
        assert f"{mean}{low} to {high}" in PAGE.text
        assert f"{mean} ({low} to {high})" in markdown


def test_tuning_says_what_diverged_and_what_is_at_the_edge() -> None:
    trials = [trial["loss"] for one in RECORD["arms"] for rung in one["tuning"] for trial in rung["trials"]]
    assert PAGE.text.count("diverged") == trials.count(None)
    for loss in trials:
        assert loss is None or f"{loss:.4f}" in PAGE.text
    assert PAGE.text.count("at the end of the grid") == 1  # only MU's learning rate is


def test_settings_that_were_not_tuned_here_are_said_to_be_of_an_earlier_comparison() -> None:
    earlier = {
        "command": "mu-sota compare --preset a&b",
        "preset": "quickstart",
        "data_fingerprint": "f",
        "steps": 1900,
    }
    record = comparison() | {"trials": None, "rungs": [], "earlier_tuning": earlier | {"trials": {}}}
    for one in record["arms"]:
        one["tuning"] = []
    text = Page(report.html(record)).text
    assert "chose for each model on the validation split" in text
    assert "in 1,900 steps" in text
    assert "mu-sota compare --preset a&b" in text
    assert "trials" not in text
    for one in record["arms"]:
        assert f"{one['chosen']['learning_rate']}" in text, "the settings themselves"
    assert "settings chosen by an earlier comparison" in report.markdown(record)


def test_command_commit_and_machine_are_shown() -> None:
    for text in (RECORD["command"], RECORD["machine"]["commit"], RECORD["started"], "Example CPU 9000", "torch 2.13.0"):
        assert text in PAGE.text


@pytest.mark.parametrize("name", ["compare-wikitext-2", "compare-wikitext-2-longer", "compare-specified-form"])
def test_the_recorded_comparison_gives_the_report_beside_it(name: str) -> None:
    """After a change of the templates: `report.write(json.loads(record), folder)` writes the folder again."""
    folder = Path(__file__).parents[2] / "docs/results" / name
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert report.markdown(record) == (folder / "report.md").read_text(encoding="utf-8")


def test_one_seed_one_question_and_no_controls() -> None:
    page = Page(report.html(SMALL))
    assert "one seed only" in page.text
    assert "Controls" not in page.text
    assert " to −" not in page.text
    assert "The same time" not in page.text
    assert "None" not in page.text
    assert rows_of(report.markdown(SMALL))[2][-2:] == ["–", "–"]


def test_a_leak_and_a_failed_control_come_first() -> None:
    record = comparison(match=("params",))
    record["arms"][2]["leak_check"] = {"clean": False, "text": "future tokens move predictions"}
    slow, base = record["arms"][-1], record["arms"][1]
    slow["runs"] = base["runs"]
    record |= conclude(record["arms"], record["references"], ["params"], kernels=False, epochs=2)
    for text in (Page(report.html(record)).text, report.markdown(record)):
        before = text[: text.index("The same number of parameters", text.index(record["verdict"][-1]) + 100)]
        assert "leak check of Llama, same total parameters is not clean" in before
        assert "A control did not come out as it must (GPT-2, learning rate x 0.1)" in before
    assert "not to be trusted" not in PAGE.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98765, "0.9877"), (98.765, "98.77"), (123.456, "123.5"), (26264.2, "26,264"), (float("inf"), "∞"), (0.0, "0")],
)
def test_numbers_have_four_significant_digits(value: float, text: str) -> None:
    assert report._significant(value) == text


def test_flops_are_readable() -> None:
    assert [report._si(value) for value in (950.0, 7_012_352, 5.74e12, 3e18)] == ["950", "7.01 M", "5.74 T", "3,000 P"]


# --- A page that stands alone ---------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    assert not set(PAGE.tags()) & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for tag, attributes in PAGE.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src", "srcset"):
                assert (value or "").startswith("#"), (tag, value)
            assert not re.search(r"url\((?!#)", value or ""), (tag, value)
    assert "url(" not in PAGE.css
    assert "@import" not in PAGE.css


def test_tables_and_figures_have_names_for_screen_readers() -> None:
    tags = PAGE.tags()
    assert tags.count("table") == tags.count("caption") > 0
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in PAGE.elements if tag == "th")
    svgs = [attributes for tag, attributes in PAGE.elements if tag == "svg"]
    assert len(svgs) == 1 + 3 + 3 * len(RECORD["tables"])
    identifiers = [attributes["id"] for _, attributes in PAGE.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for attributes in svgs:
        assert attributes["role"] == "img"
        assert set((attributes["aria-labelledby"] or "").split()) <= set(identifiers)


def everywhere(value: Any, text: str) -> Any:
    """The value with `text` instead of every free text."""
    free = {"command", "data", "title", "asks", "text", "verdict", "prompts", "samples", "preset", "processor"}
    if isinstance(value, dict):
        return {
            key: text
            if key in free and isinstance(each, str)
            else [text] * len(each)
            if key in free and isinstance(each, list)
            else everywhere(each, text)
            for key, each in value.items()
        }
    return [everywhere(each, text) for each in value] if isinstance(value, list) else value


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    hostile, plain = everywhere(comparison(match=("time",)), HOSTILE), everywhere(comparison(match=("time",)), "plain")
    for record in (hostile, plain):
        for one in record["arms"]:
            one["leak_check"] = {"clean": False, "text": record["command"]}
    page = Page(report.html(hostile))
    assert page.tags() == Page(report.html(plain)).tags()
    assert MARKUP in page.text
    assert r"\x00\u202e\ud800 {{ record }} $x$ &amp; <!--" in page.text
    report.write(hostile, tmp_path)  # can be encoded
    markdown = report.markdown(hostile)
    assert len(rows_of(markdown)) == len(rows_of(report.markdown(plain)))
    assert not re.search(r"(?<!\\)<", markdown.split("## Made with")[0])
    assert markdown.split("## Made with")[1].strip().count("\n") == 0


def test_the_same_record_gives_the_same_bytes() -> None:
    assert report.html(json.loads(json.dumps(SMALL))) == report.html(SMALL)


def test_markdown_shows_the_figures_beside_it(tmp_path: Path) -> None:
    report.write(SMALL, tmp_path)
    report.write(SMALL, tmp_path)  # over what is there
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert sorted(shown) == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("figures/*.svg"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html", "report.md"]
    for one in SMALL["arms"]:
        assert any(row[0] == one["title"] for row in rows_of(markdown))


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The report in a browser; whatever the test does with it, nothing is wrong and nothing is asked for."""
    (tmp_path / "report.html").write_text(HTML, encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    yield page
    page.close()
    assert not wrong
    assert len(asked) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_scroll_sideways(page: Any, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter((each) => {
          const box = each.getBoundingClientRect();
          return !each.closest('.wide > *') && (box.right > innerWidth + 1 || box.left < -1);
        }).map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert not wide
    assert page.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "auto"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Any, scheme: str) -> None:
    """At least 4.5 to 1 for whatever is read (WCAG AA), 3 to 1 for lines and points."""
    page.emulate_media(color_scheme=scheme)
    ratios = page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement('i'));
          const light = (name) => {
            probe.style.color = `var(--${name})`;
            const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((each) => {
              const value = each / 255;
              return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const names = ['ink', 'soft', 'warn', 'mu', 'gpt2', 'llama', 'llama-tables'];
          const paper = light('paper');
          return Object.fromEntries(names.map((name) => {
            const [low, high] = [paper, light(name)].sort((a, b) => a - b);
            return [name, (high + 0.05) / (low + 0.05)];
          }));
        }"""
    )
    read = ("ink", "soft", "warn", "mu")
    assert {name: ratio for name, ratio in ratios.items() if ratio < (4.5 if name in read else 3)} == {}


def test_the_page_prints(page: Any) -> None:
    page.emulate_media(color_scheme="dark")
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 6
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details table").first.is_visible()  # opened
    assert page.evaluate("getComputedStyle(document.querySelector('thead')).display") == "table-header-group"
    page.set_viewport_size({"width": 688, "height": 900})  # A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
