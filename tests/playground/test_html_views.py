"""The parts of the page as HTML: every text is escaped, every number is where it belongs."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from playground_model import INSPECTION, NAMES, SENTENCES, Tags

from mu_sota.data.tokenizer import encode, train_bpe, train_words
from mu_sota.model.blocks import BLOCKS
from mu_sota.playground.html_views import (
    Shown,
    attention_view,
    carried_view,
    continuations_view,
    header_view,
    message_view,
    percent,
    probability_view,
    sensitivity_view,
    state_view,
    token_heading,
    token_strip,
    token_text,
)

HOSTILE = st.one_of(
    st.text(),
    st.sampled_from(
        ["<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "' onclick='x", "&lt;b&gt;", "${1}"]
    ),
)


def parts(text: str) -> dict[str, str]:
    """Every part of the page that shows text, with `text` wherever there can be any."""
    weights, title = torch.tensor([0.25, 0.75]), f"with {text}"
    token = Shown(text, 0.5, [(text, 0.5), ("b", 0.1)], written=True, change=-0.3)
    return {
        "strip": token_strip([token, token], [(text, 0.1)], 1, title),
        "attention": attention_view([text, "b"], weights, weights.expand(16, 2), 1, "head 1"),
        "header": header_view(text, text),
        "heading": token_heading(0, text, title),
        "continuations": continuations_view(text, text, text, title),
        "probability": probability_view(weights, weights, title),
        "message": message_view(text),
        "error": message_view(text, error=True),
    }


PLAIN = {name: Tags(html) for name, html in parts("plain").items()}


@given(HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    for name, html in parts(text).items():
        found = Tags(html)
        assert found.elements == PLAIN[name].elements, name
        assert found.attributes == PLAIN[name].attributes, name
        assert found.open == 0, name


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


def test_what_blocks_carry_is_that_of_the_record() -> None:
    html = carried_view(INSPECTION)
    rows = [re.sub(r"<[^>]+>", "|", row) for row in html.split("<tr>")[2:]]
    (entity,) = (row for row in rows if "|E|" in row)
    assert re.findall(r"[^|\s][^|]*", entity)[:6] == ["E", "is it &lt;a name&gt;", "31 %", "1", "E", "3"]
    assert len(rows) == 16
    assert "1 are the best of all at what they are named for: E" in html
    assert "not inspected yet" in carried_view({})


def test_the_heat_map_names_block_and_layer_of_every_number() -> None:
    sensitivities = torch.rand(3, 16)
    html = sensitivity_view(sensitivities, 2)
    for layer in range(3):
        for number, name in enumerate(NAMES):
            value = float(sensitivities[layer, number])
            assert f'title="block {name}, layer {layer + 1}: {value:.3f}"' in html
    assert f"<span>{float(sensitivities.max()):.2f}</span>" in html  # the legend's end
    numbers = re.compile(r"<td[^>]*>([\d.]+)</td>")
    assert numbers.findall(html) == [f"{value:.2f}" for value in sensitivities.T.flatten().tolist()]
    assert not numbers.search(sensitivity_view(torch.rand(24, 16), 1)), "too narrow for numbers"


def test_probabilities_as_trained_and_changed() -> None:
    as_trained, changed = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.5])
    shown = Tags(probability_view(as_trained, changed, "without I, K")).text
    for figure in ("2.000", "3.250", "+1.250", "7.4", "25.8", "× 3.49", "4.0", "6.5", "+2.5", "without I, K"):
        assert figure in shown
    alone = Tags(probability_view(as_trained, None, "")).text
    assert "Change a block" in alone
    assert "change" not in alone
    assert "has none" in probability_view(torch.empty(0), None, "")


def marked(html: str) -> list[str]:
    return re.findall(r'<span class="mu-alt mu-same"><b>(.*?)</b>', html)


def test_the_token_that_came_is_marked_among_the_likeliest() -> None:
    likeliest = [("a", 0.5), ("b", 0.3), ("c", 0.2)]
    assert marked(token_strip([Shown("b", 0.3, likeliest)], likeliest)) == ["b"]
    assert marked(token_strip([Shown("d", 0.1, likeliest)], likeliest)) == []


@pytest.mark.parametrize(("change", "side", "shown"), [(0.5, "worse", "+0.50"), (-0.5, "better", "−0.50")])
def test_a_change_has_the_colour_of_its_side(change: float, side: str, shown: str) -> None:
    html = token_strip([Shown("a", 0.5, [], change=change)], title="without I")
    (found,) = re.findall(r'mu-change" style="--mu-on:color-mix\(in oklab,var\(--mu-(\w+)\) 25%[^>]*>([^<]*)<', html)
    assert found == (side, shown)


def test_a_value_of_the_state_has_the_colour_of_its_sign() -> None:
    matrix = torch.zeros(4, 4)
    matrix[0, 0], matrix[0, 1] = 2.0, -1.0
    found = re.findall(r"var\(--mu-(positive|negative)\) (\d+)%", state_view(matrix, 1))
    assert found[:2] == [("positive", "100"), ("negative", "50")]


def test_attention_names_the_tokens_with_the_largest_weights() -> None:
    texts = ["a", "b", "c", "d", "e"]
    weights = torch.tensor([0.1, 0.3, 0.05, 0.15, 0.4])
    blocks = torch.zeros(16, 5)
    for number in range(16):
        blocks[number, number % 4], blocks[number, 4] = 0.8, 0.2
    html = attention_view(texts, weights, blocks, 2, "who")
    most = re.findall(r'<li><b class="mu-chip">(.*?)</b> (.*?) <span>(.*?)</span>', html)
    assert most == [("e", "40 %", "itself"), ("b", "30 %", "3 tokens before"), ("d", "15 %", "the token before")]
    assert re.findall(r"<b>(.*?)</b><i>(.*?)</i>", html) == [(texts[number % 4], "80 %") for number in range(16)]
