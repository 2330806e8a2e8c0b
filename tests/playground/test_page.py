"""The page as a visitor uses it, in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playground_model import INSPECTION, MARKUP, built

from mu_sota.playground.reading_views import NAMES
from mu_sota.saved.load_save import load_trained, save_trained
from mu_sota.settings.sampling import Generation, Sampling


def test_the_title_is_the_folder_s_name_without_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mu_sota.playground.page import _title

    run = tmp_path / "runs" / "quickstart"
    (run / "best").mkdir(parents=True)
    assert _title(run) == _title(f"{run}/") == "quickstart"
    assert _title(run / "best") == "quickstart/best"
    monkeypatch.chdir(run)
    assert _title(".") == "quickstart"
    assert _title("best") == "quickstart/best"
    assert _title("/") == "the root folder"


@pytest.mark.parametrize("temperature", [0.5, 0.0, 7.0])
def test_the_sampling_fields_start_with_the_settings_saved_with_the_model(
    small_run: Path, tmp_path: Path, temperature: float
) -> None:
    saved = Sampling(temperature=temperature, repetition_penalty=1.1)
    save_trained(*load_trained(small_run), saved, tmp_path / "run" / "best")
    components = built(*load_trained(tmp_path / "run"), {}).blocks.values()
    fields = {each.label: each for each in components if hasattr(each, "label")}
    assert fields["Temperature"].value == temperature <= fields["Temperature"].maximum
    assert fields["Repetition penalty"].value == 1.1
    assert (fields["Top k"].value, fields["New tokens"].value) == (Generation().top_k, Generation().max_new_tokens)


def test_blocks_can_be_moved_in_the_directions_of_the_record(small_run: Path) -> None:
    def sliders(inspection: dict[str, Any]) -> dict[str, str]:
        components = built(*load_trained(small_run), inspection).blocks.values()
        return {each.label: each.info for each in components if str(each.elem_id).startswith("mu-move-")}

    assert sliders(INSPECTION) == {
        f"E: none → {MARKUP}": "begins with a capital: +1.3 sd; loss: +0.02",
        "A: negative → positive": "is positive rather than negative: −0.7 sd; loss: +0.02",
    }
    without_steering = {key: value for key, value in INSPECTION.items() if key != "steering"}
    assert sliders(without_steering) == sliders({}) == {}


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Any]:
    """The loaded page; whatever the test does on it, there must be no error in its console and no call elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)  # for a busy machine; nothing here waits that long on an idle one
    page = context.new_page()
    errors: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.on(
        "request",
        lambda request: None if request.url.startswith((served, "data:", "blob:")) else elsewhere.append(request.url),
    )
    page.goto(served, wait_until="domcontentloaded")
    for part in ("#mu-prompt textarea", "#mu-generate", "#mu-strip", "#mu-state"):  # they appear one after the other
        page.locator(part).wait_for(state="attached")
    yield page
    context.close()
    assert not errors
    assert not elsewhere


def write(page: Any, text: str) -> None:
    page.locator("#mu-prompt textarea").fill(text)


def message(page: Any, text: str) -> str:
    """The line below the buttons, once it holds `text`."""
    line = page.locator("#mu-message .mu-message").filter(has_text=text)
    line.wait_for()
    return str(line.inner_text())


def generated(page: Any, text: str = "the state of") -> None:
    write(page, text)
    page.get_by_role("button", name="Generate", exact=True).click()
    message(page, "Wrote 30 tokens")


def tokens(page: Any) -> list[str]:
    return list(page.locator("#mu-strip button .mu-text").all_inner_texts())


def test_a_text_is_written_token_by_token_with_alternatives(page: Any) -> None:
    write(page, "the state of")
    page.evaluate(
        """() => {
          window.counts = [];
          new MutationObserver(() => window.counts.push(document.querySelectorAll('#mu-strip button').length))
            .observe(document.querySelector('#mu-strip'), {childList: true, subtree: true});
        }"""
    )
    page.locator("#mu-prompt textarea").press("Control+Enter")
    message(page, "Wrote 30 tokens")
    counts = set(page.evaluate("window.counts"))
    prompt = max(counts) - 30
    assert prompt > 1
    assert len(counts) > 8, "the tokens did not stream in"
    assert "".join(tokens(page)[:prompt]).replace("·", " ") == "the state of"
    text = page.locator("#mu-ask .mu-prose").text_content()
    assert text.startswith("the state of")
    assert text == page.locator("#mu-continuations .mu-prose").first.text_content()
    buttons = page.locator("#mu-strip button")
    assert buttons.nth(0).locator(".mu-own").inner_text() == "first"
    for position in (1, prompt + 3):
        assert re.fullmatch(r"<?[\d.]+ %", buttons.nth(position).locator(".mu-own").inner_text())
        assert buttons.nth(position).locator(".mu-alt").count() == 3
        assert buttons.nth(position).locator(".mu-alt i").first.inner_text().endswith("%")


def test_a_token_opens_with_a_click_and_with_the_keyboard(page: Any) -> None:
    generated(page)
    page.locator("#mu-strip button").nth(2).click()
    page.locator("#mu-which").get_by_text("Token 3:").wait_for()
    names = page.locator("#mu-state .mu-name").all_inner_texts()
    assert names == NAMES
    page.wait_for_function("document.querySelector('#mu-state').getBoundingClientRect().top < innerHeight / 2")
    assert page.locator("#mu-state .mu-cells span").count() == 64
    assert page.locator("#mu-sensitivity tbody tr").count() == 16
    assert page.locator("#mu-sensitivity tbody td").count() == 16 * 3
    assert page.locator("#mu-attention .mu-read span").count() == 3
    weights = page.locator("#mu-attention .mu-read span").evaluate_all("all => all.map(each => each.title)")
    assert sum(float(weight.split()[0].strip("<")) for weight in weights) == pytest.approx(100, abs=2)

    before = page.locator("#mu-state .mu-cells").all_inner_texts()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#mu-which").get_by_text("Token 5:").wait_for()
    assert page.locator("#mu-strip button[aria-pressed='true']").evaluate("each => each.dataset.index") == "4"
    assert page.locator("#mu-state .mu-cells").all_inner_texts() != before

    page.locator("#mu-layer input[type=number]").fill("0")
    page.get_by_role("heading", name="State before the first layer").wait_for()
    page.locator("#mu-layer input[type=number]").fill("1")
    page.locator("#mu-kind input").click()
    page.get_by_role("option", name="Block K: world knowledge").click()
    page.locator("#mu-attention").get_by_text("Attention of block K").wait_for()
    assert page.locator("#mu-sensitivity th.mu-asked").inner_text() == "1"


def test_a_fractional_layer_is_rounded_and_an_emptied_number_box_keeps_its_first_value(page: Any) -> None:
    generated(page)
    box = page.locator("#mu-layer input[type=number]")
    box.fill("1.5")
    page.get_by_role("heading", name="State after layer 2").wait_for()
    box.fill("")
    page.get_by_role("heading", name="State after layer 3").wait_for()
    page.get_by_role("button", name="Sampling").click()
    page.get_by_label("number input for Temperature").fill("")
    generated(page)
    assert page.locator(".toast-body").count() == 0


def test_a_folder_name_that_is_markup_is_shown_as_text(page: Any, small_run: Path) -> None:
    assert small_run.name == MARKUP
    assert page.title() == f"mu-sota playground: {MARKUP}"
    header = page.locator("#mu-header p")
    assert header.locator("b").inner_text() == MARKUP
    assert page.locator("#mu-header img").count() == 0
    assert str(small_run.parent) not in page.content()
    assert page.locator("footer").inner_text().strip() == "Settings"


def test_everything_is_reached_with_tab(page: Any) -> None:
    generated(page)
    page.locator("#mu-prompt textarea").focus()
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                """() => {
                  const at = document.activeElement;
                  return at.dataset.index ? 'token ' + at.dataset.index : at.name || at.closest('[id^=mu-]')?.id;
                }"""
            )
        )
    assert {"mu-generate", "mu-read", "token 0", "token 30", "mu-layer", "mu-kind", "mu-as-trained", *NAMES} <= reached
    page.locator("#mu-strip button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_block_switched_off_changes_probability_and_continuation(page: Any) -> None:
    generated(page)
    shown = tokens(page)
    table = page.locator("#mu-probability tbody tr").first.locator("td")
    boxes = page.locator("#mu-continuations .mu-prose")
    assert boxes.count() == 1
    all_on, own = table.nth(0).inner_text(), boxes.inner_text()
    page.locator("#mu-switches input[name='I']").focus()
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Without I").wait_for()
    assert table.nth(0).inner_text() == all_on
    assert float(table.nth(1).inner_text()) != float(all_on)
    change = float(table.nth(2).inner_text().replace("−", "-"))
    assert change == pytest.approx(float(table.nth(1).inner_text()) - float(all_on), abs=0.002)
    changes = [float(each.replace("−", "-")) for each in page.locator("#mu-strip .mu-change").all_inner_texts()]
    assert sum(changes) / len(changes) == pytest.approx(change, abs=0.01)
    assert boxes.count() == 2
    assert boxes.nth(0).inner_text() == own
    assert boxes.nth(1).inner_text() != own
    assert tokens(page) == shown  # the text does not change
    assert page.locator("#mu-state .mu-name").first.inner_text() == "I off"
    page.get_by_role("button", name="As trained").click()
    page.locator("#mu-strip .mu-change").first.wait_for(state="detached")
    page.locator("#mu-continuations .mu-box").nth(1).wait_for(state="detached")
    assert table.count() == 1


def test_a_block_that_is_moved_changes_probability_and_continuation(page: Any) -> None:
    generated(page)
    table = page.locator("#mu-probability tbody tr").first.locator("td")
    boxes = page.locator("#mu-continuations .mu-prose")
    as_trained, own = table.nth(0).inner_text(), boxes.inner_text()
    assert f"E: none → {MARKUP}" in page.locator("#mu-move-E").inner_text()
    assert page.locator("#mu-changed img").count() == 0
    slider = page.locator("#mu-move-E input[type=range]")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="With E +2").wait_for()
    assert table.nth(0).inner_text() == as_trained
    assert float(table.nth(1).inner_text()) != float(as_trained)
    assert page.locator("#mu-probability thead th").nth(2).inner_text() == "with E +2"
    assert boxes.nth(0).inner_text() == own
    assert boxes.nth(1).inner_text() != own
    assert page.locator("#mu-which").get_by_text("with E +2").count() == 1
    page.locator("#mu-move-A input[type=number]").fill("-1.5")
    page.locator("#mu-switches input[name='C2']").uncheck()
    page.get_by_role("heading", name="Without C2, with E +2, A −1.5").wait_for()
    page.get_by_role("button", name="As trained").click()
    boxes.nth(1).wait_for(state="detached")
    assert page.locator("#mu-strip .mu-change").count() == 0
    assert (table.all_inner_texts(), boxes.inner_text()) == ([as_trained], own)
    assert [page.locator(f"#mu-move-{name} input[type=range]").input_value() for name in "EA"] == ["0", "0"]
    assert page.locator("#mu-switches input:checked").count() == len(NAMES)


def test_stop_ends_a_text_early(page: Any) -> None:
    write(page, "the")
    page.get_by_role("button", name="Sampling").click()
    page.get_by_label("number input for New tokens").fill("380")
    for _ in range(10):  # on a busy machine the text can be done before the browser has clicked
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#mu-stop:enabled").click(force=True)
        shown_message = message(page, "; the prompt has 1.")
        if shown_message.startswith("Stopped after"):
            break
        page.locator("#mu-stop:disabled").wait_for()
    assert shown_message.startswith("Stopped after")
    written = int(shown_message.split()[2])
    assert 1 <= written < 380
    assert len(tokens(page)) == 1 + written
    page.locator("#mu-stop:disabled").wait_for()
    page.locator("#mu-switches input[name='I']").uncheck()
    page.get_by_role("heading", name="Without I").wait_for()  # of as many tokens
    texts = page.locator("#mu-continuations .mu-prose").all_inner_texts()
    assert len(texts[1]) < 3 * len(texts[0])


def test_hostile_text_is_shown_as_text(page: Any) -> None:
    hostile = "<img src=x onerror=alert(1)>${alert(2)}{{value}}`\x07\u202e"
    write(page, hostile)
    page.get_by_role("button", name="Read", exact=True).click()
    message(page, "Read ")
    page.locator("#mu-strip button").first.wait_for()
    assert page.locator("#mu-strip img, #mu-attention img, #mu-continuations img").count() == 0
    shown = "".join(tokens(page))
    assert shown == hostile.replace(" ", "·").replace("\x07", r"\x07").replace("\u202e", r"\xe2\x80\xae")
    assert hostile[:-2] in page.locator("#mu-continuations .mu-prose").first.inner_text()


def test_a_text_that_cannot_be_read_gets_a_sentence_with_the_limit(page: Any) -> None:
    read = page.get_by_role("button", name="Read", exact=True)
    write(page, "<b>" * 34_000)
    read.click()
    assert message(page, "102,000 characters") == (
        "the text has 102,000 characters, but at most 20,000 are read here; shorten it"
    )
    generated(page)
    write(page, "<i>state</i> " * 60)
    page.get_by_role("button", name="Generate", exact=True).click()
    shown_message = message(page, "positions")
    assert tokens(page) == []  # nothing of the earlier text is left below the sentence
    assert page.locator("#mu-ask .mu-prose, #mu-state h3").count() == 0
    assert "but the model has 400 positions; shorten the prompt" in shown_message
    assert page.locator("#mu-message i").count() == 0
    assert page.locator("#mu-message [role='alert']").count() == 1
    page.locator("#mu-prompt textarea").evaluate(
        "area => {area.value = 'a' + String.fromCharCode(0xd800); area.dispatchEvent(new Event('input'))}"
    )
    read.click()
    message(page, "surrogate")
    generated(page)  # all is well after it


def test_generation_ends_at_the_last_position_and_the_page_says_so(page: Any) -> None:
    write(page, "the state of a token is a matrix of named blocks. " * 40)
    page.get_by_role("button", name="Read", exact=True).click()
    first = message(page, "positions")
    length = int(first.split(" has ")[1].split()[0])
    unit = length / 40
    write(page, "the state of a token is a matrix of named blocks. " * int(390 / unit))
    page.get_by_role("button", name="Generate", exact=True).click()
    shown_message = message(page, "That is all that fits into 400 positions.")
    assert int(shown_message.split()[1]) + int(shown_message.split(" has ")[1].split(".")[0]) == 400


def test_an_empty_prompt_begins_a_text(page: Any) -> None:
    generated(page, "")
    assert tokens(page)[0] == "<BOS>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_on_a_phone(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    generated(page)
    page.locator("#mu-switches input[name='K']").uncheck()
    page.get_by_role("heading", name="Without K").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        """() => [...document.querySelectorAll('.mu-card *')].filter((each) => {
          const place = each.getBoundingClientRect();
          const hidden = getComputedStyle(each).position === 'absolute';
          return place.width && !hidden && (place.right > 391 || place.left < -1);
        }).map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert not wide
