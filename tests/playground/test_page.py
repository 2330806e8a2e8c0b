"""The playground: its parts as HTML, and the page as a visitor uses it, in a real browser."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from conftest import command_of, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mu_sota import MuConfig, MuForCausalLM, cli
from mu_sota.data.tokenizer import encode, train_bpe, train_words, visible
from mu_sota.generation.continuation import continued
from mu_sota.model.blocks import BLOCKS
from mu_sota.playground.html_views import (
    Shown,
    attention_view,
    comparison_view,
    continuations_view,
    message_view,
    percent,
    sensitivity_view,
    state_view,
    token_strip,
    token_text,
)
from mu_sota.saved.load_save import load_trained
from mu_sota.settings.sampling import Generation

NAMES = [block.name for block in BLOCKS]
SENTENCES = [
    "the state of a token is a matrix of named blocks. ",
    "every block reads what the blocks before it have said. ",
    "a small model of the state moves the blocks it keeps. ",
]
MARKUP = "<img src=x onerror=alert(1)>"

# --- Parts ----------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser would make of a piece of HTML: its elements, its attributes' names, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.open = 0
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= 1

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = st.one_of(
    st.text(),
    st.sampled_from(
        ["<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "' onclick='x", "&lt;b&gt;", "${1}"]
    ),
)


def parts(text: str) -> dict[str, str]:
    """Every part of the page that shows text, with `text` wherever it can stand."""
    weights = torch.tensor([0.25, 0.75])
    token = Shown(text, 0.5, [(text, 0.5), ("b", 0.1)], written=True, change=-0.3)
    return {
        "strip": token_strip([token, token], [(text, 0.1)], 1, ["I"]),
        "attention": attention_view([text, "b"], weights, weights.expand(16, 2), 1, "head 1"),
        "continuations": continuations_view(text, text, text, ["I"]),
        "message": message_view(text),
        "error": message_view(text, error=True),
    }


PLAIN = {name: Tags(html) for name, html in parts("plain").items()}


@settings(deadline=None)
@given(HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    for name, html in parts(text).items():
        found = Tags(html)
        assert found.elements == PLAIN[name].elements, name
        assert found.attributes == PLAIN[name].attributes, name
        assert found.open == 0, name


@given(st.text())
def test_every_character_of_a_token_is_in_sight(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert " " not in shown
    assert len(shown) >= len(text)


def test_what_cannot_be_printed_is_written_as_a_code() -> None:
    assert visible("a b\n\t\0\x9f\u202e\ud800\U000e0041") == r"a·b⏎⇥\x00\x9f\u202e\ud800\U000e0041"
    assert visible("a b\n\t\r\0\u202e\u2066\u200b\u2028\ufeff", spaces=False) == (
        r"a b~\x0d\x00\u202e\u2066\u200b\u2028\ufeff".replace("~", "\n\t")
    )


def test_what_people_write_is_as_it_was() -> None:
    """Letters of all scripts, their spaces and joiners, emoji of several characters."""
    for text in ("naïve\u00a0café", "漢字\u3000かな", "می\u200cخواهم", "क्\u200dष", "👩\u200d👩\u200d👧", "❤\ufe0f"):
        assert visible(text, spaces=False) == text
    assert visible("👩\u200d👧\u00a0") == r"👩\u200d👧\xa0"  # but of a token, nothing is out of sight


def test_tokens_are_shown_as_bytes_where_they_are_no_characters() -> None:
    bpe = train_bpe(SENTENCES, 280)
    ids = encode(bpe, "né\n").tolist()
    assert [token_text(bpe, token) for token in ids] == ["n", r"\xc3", r"\xa9", "⏎"]
    assert token_text(bpe, bpe.eos_token_id) == "<EOS>"
    words = train_words(SENTENCES)
    assert [token_text(words, token) for token in encode(words, "the state").tolist()] == ["the", "state"]


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(1, "100 %"), (0.0996, "10 %"), (0.0994, "9.9 %"), (0.0004, "0.04 %"), (0.00001, "<0.01 %"), (0, "<0.01 %")],
)
def test_percent(probability: float, shown: str) -> None:
    assert percent(probability) == shown


@pytest.mark.parametrize("side", [8, 12])
def test_the_state_is_shown_block_by_block(side: int) -> None:
    """Each tile holds the cells of its block, found here by row and column of the matrix."""
    matrix = torch.arange(side * side).float().view(side, side) / 10 - 1
    html = state_view(matrix, 2, ["K"])
    tiles = html.split('<div class="mu-tile"')[1:]
    edge = side // 4
    for number, (tile, block) in enumerate(zip(tiles, BLOCKS, strict=True)):
        assert f">{block.name}{' off' if block.name == 'K' else ''}<" in tile
        assert f'title="{block.name}: {block.meaning}"' in tile
        cells = [float(cell.replace("−", "-")) for cell in re.findall(r">(−?\d+\.\d)<", tile)]
        row, column = number // 4 * edge, number % 4 * edge
        expected = [float(matrix[row + r, column + c]) for r in range(edge) for c in range(edge)]
        assert cells[: edge * edge] == pytest.approx(expected, abs=0.051)
    assert "after layer 2" in html
    assert "before the first layer" in state_view(matrix, 0)


def test_the_heat_map_names_block_and_layer_of_every_number() -> None:
    sensitivities = torch.rand(3, 16)
    html = sensitivity_view(sensitivities, 2)
    for layer in range(3):
        for number, name in enumerate(NAMES):
            value = float(sensitivities[layer, number])
            assert f'title="block {name}, layer {layer + 1}: {value:.3f}"' in html
    assert f"<span>{float(sensitivities.max()):.2f}</span>" in html  # the legend's end
    assert len(Tags(sensitivity_view(torch.rand(24, 16), 1)).text) < len(Tags(html).text) + 24  # too narrow for numbers


def test_probabilities_with_and_without_blocks() -> None:
    whole, without = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.5])
    shown = Tags(comparison_view(whole, without, ["I", "K"])).text
    for figure in ("2.000", "3.250", "+1.250", "7.4", "25.8", "× 3.49", "4.0", "6.5", "+2.5", "without I, K"):
        assert figure in shown
    alone = Tags(comparison_view(whole, None, [])).text
    assert "Switch a block off" in alone
    assert "change" not in alone.replace("changes", "")
    assert "has none" in comparison_view(torch.empty(0), None, [])


def marked(html: str) -> list[str]:
    return re.findall(r'<span class="mu-alt mu-same"><b>(.*?)</b>', html)


def test_the_token_that_came_is_marked_among_the_likeliest() -> None:
    likeliest = [("a", 0.5), ("b", 0.3), ("c", 0.2)]
    assert marked(token_strip([Shown("b", 0.3, likeliest)], likeliest)) == ["b"]
    assert marked(token_strip([Shown("d", 0.1, likeliest)], likeliest)) == []


@pytest.mark.parametrize(("change", "side", "shown"), [(0.5, "worse", "+0.50"), (-0.5, "better", "−0.50")])
def test_a_change_has_the_colour_of_its_side(change: float, side: str, shown: str) -> None:
    html = token_strip([Shown("a", 0.5, [], change=change)], off=["I"])
    (found,) = re.findall(r'mu-change" style="--mu-on:color-mix\(in oklab,var\(--mu-(\w+)\) 25%.*?>([^<]*)<', html)
    assert found == (side, shown)


def test_a_value_of_the_state_has_the_colour_of_its_sign() -> None:
    matrix = torch.zeros(4, 4)
    matrix[0, 0], matrix[0, 1] = 2.0, -1.0
    found = re.findall(r"var\(--mu-(positive|negative)\) (\d+)%", state_view(matrix, 1))
    assert found[:2] == [("positive", "100"), ("negative", "50")]


def test_attention_names_what_was_looked_at_most() -> None:
    texts = ["a", "b", "c", "d", "e"]
    weights = torch.tensor([0.1, 0.3, 0.05, 0.15, 0.4])
    blocks = torch.zeros(16, 5)
    for number in range(16):
        blocks[number, number % 4], blocks[number, 4] = 0.8, 0.2
    html = attention_view(texts, weights, blocks, 2, "who")
    most = re.findall(r'<li><b class="mu-chip">(.*?)</b> (.*?) <span>(.*?)</span>', html)
    assert most == [("e", "40 %", "itself"), ("b", "30 %", "3 tokens before"), ("d", "15 %", "the token before")]
    assert re.findall(r"<b>(.*?)</b><i>(.*?)</i>", html) == [(texts[number % 4], "80 %") for number in range(16)]


# --- What stands behind the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: a small random model whose blocks matter, and a BPE of a few merges.

    Its name is markup.
    """
    folder = tmp_path_factory.mktemp("playground") / MARKUP
    tokenizer = train_bpe(SENTENCES * 20, 320)
    torch.manual_seed(3)
    config = MuConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        max_position_embeddings=400,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MuForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.lm_head.bias[: tokenizer.eos_token_id + 1] = -50  # a text never ends early
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_streams_is_what_is_read_afterwards(small_run: Path) -> None:
    from mu_sota.playground.page import Looking, Reading

    model, tokenizer = load_trained(small_run)
    looking = Looking(model, tokenizer)
    generation = Generation.model_validate({"max_new_tokens": 12, "seed": 4})
    ids = looking.ids("the state", 12)
    first, *steps = [step for steps in looking.write(ids, generation, Event()) for step in steps]
    done = steps.pop()
    assert isinstance(done, Reading)
    assert done.ids == continued(model, tokenizer, ids, generation, 12, 4)
    shown = looking.shown(first, len(ids)) + [looking.step(step) for step in steps]
    for streamed, read in zip(shown, looking.shown(done.seen, len(ids)), strict=True):
        assert (streamed.text, streamed.written) == (read.text, read.written)
        assert streamed.probability == (read.probability and pytest.approx(read.probability, rel=1e-4))
        assert [text for text, _ in streamed.alternatives] == [text for text, _ in read.alternatives]
        assert [p for _, p in streamed.alternatives] == pytest.approx([p for _, p in read.alternatives], rel=1e-4)


def test_a_page_that_is_closed_holds_nothing_up(small_run: Path) -> None:
    from mu_sota.playground.page import Looking

    model, tokenizer = load_trained(small_run)
    looking = Looking(model, tokenizer)
    generation = Generation.model_validate({"max_new_tokens": 30})
    writing = looking.write(looking.ids("the", 30), generation, Event())
    next(writing)
    del writing
    reading = looking.read(looking.ids("the state", 30), generation)
    assert not model._forward_hooks
    off = looking.switch(reading, ("I", "K"))
    assert off.without is not None
    assert looking.continuation(off) != reading.continuation == looking.continuation(reading)


@pytest.fixture
def looking(small_run: Path) -> Any:
    from mu_sota.playground.page import Looking

    return Looking(*load_trained(small_run))


def test_the_attention_that_is_asked_for_is_shown(looking: Any) -> None:
    reading = looking.read(looking.ids("the state of a token", 1), Generation(max_new_tokens=1))
    position = 3
    rows = reading.seen.attention(position, 2)
    asked = {"mean": sum(rows.cross) / len(rows.cross), "K": rows.block[NAMES.index("K")]}
    asked |= {f"head {number}": row for number, row in enumerate(rows.cross, start=1)}
    shown = {}
    for kind, weights in asked.items():
        html = looking.inspected(reading, position, 2, kind)[3]
        shown[kind] = re.findall(r'<span style="[^"]*" title="(.*?)">', html)
        assert shown[kind] == [percent(float(weight)) for weight in weights], kind
    assert len({tuple(each) for each in shown.values()}) == len(shown), "a mix-up would show"


def test_a_token_that_is_markup_is_shown_as_text() -> None:
    from mu_sota.playground.page import Looking

    words = train_words(["<b>bold</b> text\n"])
    torch.manual_seed(0)
    model = MuForCausalLM(MuConfig(vocab_size=len(words), num_hidden_layers=1, max_position_embeddings=9)).eval()
    looking = Looking(model, words)
    reading = looking.read(looking.ids("<b>bold</b>", 1), Generation(max_new_tokens=1))
    heading = looking.inspected(reading, 0, 1, "mean")[0]
    assert "&lt;b&gt;bold&lt;/b&gt;</b>" in heading
    assert Tags(heading).elements == ["p", "b"]


def test_a_switch_waits_for_the_model(looking: Any) -> None:
    """What one visitor switches off must not be off in what another one is reading."""
    reading = looking.read(looking.ids("the state", 1), Generation(max_new_tokens=1))
    without = looking.switch(reading, ("I",))
    for question in (
        lambda: looking.switch(reading, ("I",)),
        lambda: looking.continuation(without),
        lambda: looking.read(reading.ids, reading.generation),
    ):
        asked = Thread(target=question, daemon=True)
        with looking.lock:
            asked.start()
            asked.join(0.3)
            assert asked.is_alive()
            assert not looking.model.model.layers[0]._forward_pre_hooks
        asked.join(20)
        assert not asked.is_alive()


class Asked:
    """The page's functions, called as Gradio calls them, with what they put where."""

    def __init__(self, model: MuForCausalLM, tokenizer: Any) -> None:
        from mu_sota.playground import page as playground

        async def build() -> Any:  # elsewhere, Gradio would leave an event loop open
            return playground.build(model, tokenizer, MARKUP)

        self.page = asyncio.run(build())
        self.functions: dict[str, Any] = {each.name: each.fn for each in self.page.fns.values()}
        self.stopped = next(
            cell.cell_contents.stopped
            for cell in self.functions["on_stop"].__closure__
            if isinstance(cell.cell_contents, playground.Looking)
        )

    def values(self) -> list[Any]:
        """Of the fields: blocks that are on, layer, attention, and how to sample."""
        default = Generation(max_new_tokens=3)
        fields = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
        return [NAMES, 1, "mean", *(getattr(default, field) for field in fields)]

    def generate(self) -> Iterator[dict[str, Any]]:
        visitor = SimpleNamespace(session_hash="someone")
        for update in self.functions["on_generate"](visitor, "the state", *self.values()):
            yield self.by_id(update)

    def read(self) -> dict[str, Any]:
        return self.by_id(self.functions["on_read"]("the state", *self.values()))

    @staticmethod
    def by_id(update: dict[Any, Any]) -> dict[str, Any]:
        return {component.elem_id: value for component, value in update.items()}


def test_nothing_is_kept_of_a_text_that_is_done(small_run: Path) -> None:
    asked = Asked(*load_trained(small_run))
    writing = asked.generate()
    assert next(writing)["mu-stop"].interactive
    assert list(asked.stopped) == ["someone"]
    assert not list(writing)[-1]["mu-stop"].interactive
    assert not asked.stopped
    left = asked.generate()
    next(left)
    left.close()  # as when the visitor leaves
    assert not asked.stopped


def test_a_model_that_fails_is_answered_with_what_happened(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mu_sota.model.errors import InputError
    from mu_sota.playground import page as playground

    asked = Asked(*load_trained(small_run))
    for error, sentence in (
        (InputError("no <number> & nothing"), "no &lt;number&gt; &amp; nothing"),
        (RuntimeError("probability tensor"), "the model failed: RuntimeError: probability tensor"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(playground, "continued", fail)
        for last in (list(asked.generate())[-1], asked.read()):
            assert sentence in last["mu-message"]
            assert 'role="alert"' in last["mu-message"]
            assert not last["mu-stop"].interactive
        assert not asked.stopped
        assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)


def test_a_model_without_numbers_is_answered_with_a_sentence(small_run: Path) -> None:
    model, tokenizer = load_trained(small_run)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    asked = Asked(model, tokenizer)
    last = list(asked.generate())[-1]
    assert 'role="alert"' in last["mu-message"]
    assert not last["mu-stop"].interactive


def test_the_page_tells_a_model_s_name_and_not_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mu_sota.playground.page import _name

    run = tmp_path / "runs" / "quickstart"
    (run / "best").mkdir(parents=True)
    assert _name(run) == _name(f"{run}/") == "quickstart"
    assert _name(run / "best") == "quickstart/best"
    monkeypatch.chdir(run)
    assert _name(".") == "quickstart"
    assert _name("best") == "quickstart/best"
    assert _name("/") == "the root folder"


# --- The page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def served(small_run: Path) -> Iterator[str]:
    """The address of a playground that was started as a user starts it; it must end with Ctrl-C, and be silent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (example,) = examples("bash", "mu-sota playground")
        _, playground, _ = command_of(example, "mu-sota playground")
        # As `python -m mu_sota`; but where this runs without Ctrl-C, as under nohup, the child must have it again.
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import mu_sota.__main__"
        command = [sys.executable, "-c", code, playground, str(small_run), "--no-browser", f"--port={port}"]
        # A call to anywhere else would be refused, and show in the output.
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **nowhere}
        )
        try:
            assert server.stdout is not None
            first, second = server.stdout.readline(), server.stdout.readline()
            assert first.startswith(f"Port {port} is taken, so this is port ")
            address = re.search(r"http://127\.0\.0\.1:\d+", second)
            assert address, second
            yield address.group()
            server.send_signal(signal.SIGINT)
            said, _ = server.communicate(timeout=20)
            assert (server.returncode, said) == (0, "")
        finally:
            server.kill()
            server.wait()


def answered(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers)) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


@pytest.mark.parametrize("path", ["", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"])
def test_no_name_but_this_machine_s_own_is_answered(served: str, path: str) -> None:
    """A page elsewhere may have its name lead here (DNS rebinding)."""
    port = served.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "0.0.0.0"):
        assert answered(served + path, Host=host) == 400
    if "queue" not in path:
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
            assert answered(served + path, Host=host) == 200


def test_no_function_of_the_page_is_offered_to_programs(served: str) -> None:
    with urlopen(f"{served}/gradio_api/info") as response:
        assert json.load(response)["named_endpoints"] == {}


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Any]:
    """The loaded page; whatever the test does on it, there must be no error in its console and no call elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(15_000)
    page = context.new_page()
    errors: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: None if request.url.startswith((served, "data:", "blob:")) else elsewhere.append(request.url),
    )
    page.goto(served, wait_until="domcontentloaded")
    page.locator("#mu-prompt textarea").wait_for()
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
    given = max(counts) - 30
    assert given > 1
    assert len(counts) > 8, "the tokens did not stream in"
    assert "".join(tokens(page)[:given]).replace("·", " ") == "the state of"
    text = page.locator("#mu-ask .mu-prose").text_content()
    assert text.startswith("the state of")
    assert text == page.locator("#mu-continuations .mu-prose").first.text_content()
    buttons = page.locator("#mu-strip button")
    assert buttons.nth(0).locator(".mu-own").inner_text() == "first"
    for place in (1, given + 3):
        assert re.fullmatch(r"<?[\d.]+ %", buttons.nth(place).locator(".mu-own").inner_text())
        assert buttons.nth(place).locator(".mu-alt").count() == 3
        assert buttons.nth(place).locator(".mu-alt i").first.inner_text().endswith("%")


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


def test_a_layer_between_two_and_an_emptied_box(page: Any) -> None:
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


def test_a_folder_whose_name_is_markup_is_called_by_it(page: Any, small_run: Path) -> None:
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
    assert {"mu-generate", "mu-read", "token 0", "token 30", "mu-layer", "mu-kind", "mu-all-on", *NAMES} <= reached
    page.locator("#mu-strip button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_block_switched_off_changes_probability_and_continuation(page: Any) -> None:
    generated(page)
    shown = tokens(page)
    table = page.locator("#mu-probability tbody tr").first.locator("td")
    boxes = page.locator("#mu-continuations .mu-prose")
    assert boxes.count() == 1
    whole, own = table.nth(0).inner_text(), boxes.inner_text()
    page.locator("#mu-switches input[name='I']").focus()
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Without I").wait_for()
    assert table.nth(0).inner_text() == whole
    assert float(table.nth(1).inner_text()) != float(whole)
    change = float(table.nth(2).inner_text().replace("−", "-"))
    assert change == pytest.approx(float(table.nth(1).inner_text()) - float(whole), abs=0.002)
    changes = [float(each.replace("−", "-")) for each in page.locator("#mu-strip .mu-change").all_inner_texts()]
    assert sum(changes) / len(changes) == pytest.approx(change, abs=0.01)
    assert boxes.count() == 2
    assert boxes.nth(0).inner_text() == own
    assert boxes.nth(1).inner_text() != own
    assert tokens(page) == shown  # the given text stays
    assert page.locator("#mu-state .mu-name").first.inner_text() == "I off"
    page.get_by_role("button", name="All on").click()
    page.locator("#mu-strip .mu-change").first.wait_for(state="detached")
    page.locator("#mu-continuations .mu-box").nth(1).wait_for(state="detached")
    assert table.count() == 1


def test_stop_ends_a_text_early(page: Any) -> None:
    write(page, "the")
    page.get_by_role("button", name="Sampling").click()
    page.get_by_label("number input for New tokens").fill("380")
    for _ in range(10):  # on a busy machine the text can be done before the browser has clicked
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#mu-stop:enabled").click(force=True)
        said = message(page, "; the prompt has 1.")
        if said.startswith("Stopped after"):
            break
        page.locator("#mu-stop:disabled").wait_for()
    assert said.startswith("Stopped after")
    written = int(said.split()[2])
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


def test_what_cannot_be_read_is_answered_with_the_limit(page: Any) -> None:
    read = page.get_by_role("button", name="Read", exact=True)
    write(page, "<b>" * 34_000)
    read.click()
    assert message(page, "102,000 characters") == (
        "the text has 102,000 characters, but at most 20,000 are read here; shorten it"
    )
    generated(page)
    write(page, "<i>state</i> " * 60)
    page.get_by_role("button", name="Generate", exact=True).click()
    said = message(page, "positions")
    assert tokens(page) == []  # nothing of the text before stands below the sentence
    assert page.locator("#mu-ask .mu-prose, #mu-state h3").count() == 0
    assert "but the model has 400 positions; shorten the prompt" in said
    assert page.locator("#mu-message i").count() == 0
    assert page.locator("#mu-message [role='alert']").count() == 1
    page.locator("#mu-prompt textarea").evaluate(
        "area => {area.value = 'a' + String.fromCharCode(0xd800); area.dispatchEvent(new Event('input'))}"
    )
    read.click()
    message(page, "surrogate")
    generated(page)  # all is well after it


def test_what_does_not_fit_is_left_out_and_said(page: Any) -> None:
    write(page, "the state of a token is a matrix of named blocks. " * 40)
    page.get_by_role("button", name="Read", exact=True).click()
    first = message(page, "positions")
    length = int(first.split(" has ")[1].split()[0])
    unit = length / 40
    write(page, "the state of a token is a matrix of named blocks. " * int(390 / unit))
    page.get_by_role("button", name="Generate", exact=True).click()
    said = message(page, "That is all that fits into 400 positions.")
    assert int(said.split()[1]) + int(said.split(" has ")[1].split(".")[0]) == 400


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


# --- The command ----------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["playground", *arguments])
    assert left.value.code == 2
    return capsys.readouterr().err.strip()


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "not a MU model" in refused(capsys, str(tmp_path), "--no-browser")
    assert "there is no folder" in refused(capsys, str(tmp_path / "none"), "--no-browser")


def test_without_gradio_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        refused(capsys, str(tmp_path))
        == "mu-sota: the playground needs gradio, which is not installed: pip install 'gradio>=6.28'"
    )
