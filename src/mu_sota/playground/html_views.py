"""The parts of the playground's page as HTML: whatever text comes in is escaped, and every character is in sight.

Legend: T tokens of the text, L layers, N = 16 blocks, M side of the state matrix. A class of `playground.css` starts
with `mu-`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from html import escape
from typing import NamedTuple

from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mu_sota.common.text import readable
from mu_sota.data.tokenizer import visible
from mu_sota.model.blocks import BLOCKS, GRID

LIKELIEST = 3
_NAMED_BLOCKS = 4  # that are off
_NUMBERED_LAYERS = 8  # of a heat map whose cells have room for their numbers

# --- Text as it is shown ---------------------------------------------------------------------------------------------


@cache
def _bytes_of_letters() -> dict[str, int]:
    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def token_text(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """A token as it is shown; of a byte-level token, bytes that are no whole UTF-8 character as `\\xNN`."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.all_special_ids or not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return visible(name)
    letters = _bytes_of_letters()
    raw = bytes(letters[letter] for letter in name)
    return visible(raw.decode("utf-8", errors="backslashreplace"))


def named(off: Sequence[str]) -> str:
    """Blocks that are off, in few words."""
    return (
        ", ".join(off)
        if len(off) <= _NAMED_BLOCKS
        else "any block"
        if len(off) == len(BLOCKS)
        else f"{len(off)} blocks"
    )


def percent(probability: float) -> str:
    """A probability in few characters."""
    value = 100 * probability
    if value >= 9.95:
        return f"{value:.0f} %"
    if value >= 0.095:
        return f"{value:.1f} %"
    return f"{value:.2f} %" if value >= 0.01 else "<0.01 %"


# --- Parts of the page ----------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """One place of the token strip."""

    text: str  # as `token_text` gives it
    probability: float | None  # None for the first token, which nothing predicts, and for a place still open
    alternatives: list[tuple[str, float]]  # the likeliest tokens of this place
    written: bool = False  # by the model, not in the prompt
    change: float | None = None  # nats by which blocks that are off make it less (+) or more (-) surprising


def token_strip(
    tokens: Sequence[Shown],
    following: Sequence[tuple[str, float]] = (),
    selected: int = -1,
    off: Sequence[str] = (),
) -> str:
    """The tokens as buttons, each with its probability and the likeliest tokens of its place.

    Args:
        following: the likeliest tokens after the text.
        selected: the token that is inspected.
        off: the blocks without which the tokens' `change` is.
    """
    if not tokens:
        return placeholder("Tokens appear here: write a prompt, then press Generate or Read.")
    parts = [_token(index, token, index == selected) for index, token in enumerate(tokens)]
    if following:
        parts.append(
            f'<div class="mu-token mu-next"><span class="mu-text">next</span><span class="mu-own">'
            f"not written</span>{_alternatives(following, None)}</div>"
        )
    note = ""
    if off:
        note = (
            f'<p class="mu-note">All figures are without {named(off)}. Coloured: by how many nats that makes a token '
            f"more (+) or less (−) surprising; 1 nat more is {math.e:.1f} times less probable.</p>"
        )
    return f'{note}<div class="mu-strip" role="group" aria-label="Tokens of the text">{"".join(parts)}</div>'


def _token(index: int, token: Shown, selected: bool) -> str:
    probability = token.probability
    own = "first" if probability is None else percent(probability)
    label = f"token {index + 1}, {token.text}, " + (
        "first of the text" if probability is None else f"probability {own}"
    )
    change = ""
    if token.change is not None:
        label += f", {token.change:+.2f} nats without the blocks that are off"
        side = "worse" if token.change > 0 else "better"
        strength = 0 if abs(token.change) < 0.005 else min(abs(token.change) / 2, 1)
        change = (
            f'<span class="mu-change" style="{_mix(strength, side)}" title="nats more surprising without these blocks">'
            f"{_minus(f'{token.change:+.2f}')}</span>"
        )
    kinds = "mu-token" + " mu-written" * token.written
    return (
        f'<button type="button" class="{kinds}" data-index="{index}" aria-pressed="{str(selected).lower()}"'
        f' aria-label="{escape(label)}"><span class="mu-text">{escape(token.text) or "&nbsp;"}</span>'
        f'<span class="mu-own">{own}</span><span class="mu-bar"><i style="width:{100 * (probability or 0):.1f}%"></i>'
        f"</span>{change}{_alternatives(token.alternatives, token.text)}</button>"
    )


def _alternatives(alternatives: Iterable[tuple[str, float]], own: str | None) -> str:
    rows = "".join(
        f'<span class="mu-alt{" mu-same" * (text == own)}"><b>{escape(text)}</b><i>{percent(probability)}</i></span>'
        for text, probability in alternatives
    )
    return f'<span class="mu-alts">{rows}</span>'


def state_view(matrix: Tensor, layer: int, off: Sequence[str] = ()) -> str:
    """An M x M state, tiled by its 16 named blocks, those that are off marked."""
    side = len(matrix) // GRID
    largest = max(float(matrix.abs().max()), 1e-9)
    digits = 1 if largest >= 0.5 else 2
    tiles = []
    for number, block in enumerate(BLOCKS):
        row, column = (side * place for place in divmod(number, GRID))
        values = matrix[row : row + side, column : column + side].flatten().tolist()
        cells = "".join(
            f'<span style="{_mix(abs(value) / largest, "positive" if value > 0 else "negative")}">'
            f"{_minus(f'{round(value, digits) + 0.0:.{digits}f}')}</span>"
            for value in values
        )
        tiles.append(
            f'<div class="mu-tile" title="{block.name}: {escape(block.meaning)}"><span class="mu-name">{block.name}'
            f"{' off' * (block.name in off)}"
            f'</span><div class="mu-cells" style="grid-template-columns:repeat({side},1fr)">{cells}</div></div>'
        )
    when = "before the first layer" if layer == 0 else f"after layer {layer}"
    return (
        f"<h3>State {when}</h3><p>The token is this {len(matrix)} × {len(matrix)} matrix. Each of its 16 blocks is "
        f'reserved for a part of meaning.</p><div class="mu-grid mu-state">{"".join(tiles)}</div>'
        + _legend("diverging", f"−{largest:.{digits}f}", "0", f"+{largest:.{digits}f}")
        + _meanings()
    )


def sensitivity_view(sensitivities: Tensor, layer: int) -> str:
    """Sensitivities [L, N] of one token: a row a block, a column a layer; the asked layer is marked."""
    layers = len(sensitivities)
    largest = max(float(sensitivities.abs().max()), 1e-9)
    numbered = layers <= _NUMBERED_LAYERS
    head = "".join(
        f'<th scope="col"{_mark(number == layer)} aria-label="layer {number}">'
        f"{number if numbered or number == layer or (number % 4 == 0 and abs(number - layer) > 1) else ''}</th>"
        for number in range(1, layers + 1)
    )
    rows = []
    for number, block in enumerate(BLOCKS):
        cells = "".join(
            f'<td style="{_mix(abs(value) / largest, "high")}" title="block {block.name}, layer {at}: {value:.3f}"'
            f"{_mark(at == layer)}>{f'{value:.2f}' if numbered else ''}</td>"
            for at, value in enumerate(sensitivities[:, number].tolist(), start=1)
        )
        rows.append(f'<tr><th scope="row" title="{escape(block.meaning)}">{block.name}</th>{cells}</tr>')
    return (
        "<h3>Sensitivity by block and layer</h3><p>How much of its new value a block takes over in each layer: 0 keeps "
        f'the old one.</p><table class="mu-heat"><caption class="mu-hidden">Sensitivity of each block in each layer'
        f'</caption><thead><tr><th scope="col"><span class="mu-hidden">block</span></th>{head}</tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table>" + _legend("sequential", "0", "", f"{largest:.2f}")
    )


def attention_view(texts: Sequence[str], weights: Tensor, blocks: Tensor, layer: int, who: str) -> str:
    """Where the last of `texts` looked.

    Args:
        texts: the tokens up to the asked one.
        weights: [len(texts)], of the attention that is asked for.
        blocks: [N, len(texts)], of the block attentions.
        layer: counted from 1.
        who: the name of the attention that is asked for.
    """
    largest = max(float(weights.max()), 1e-9)
    row = "".join(
        f'<span style="{_mix(weight / largest, "high")}" title="{percent(weight)}">{escape(text)}</span>'
        for text, weight in zip(texts, weights.tolist(), strict=True)
    )
    most = weights.topk(min(LIKELIEST, len(texts)))
    first = "".join(
        f'<li><b class="mu-chip">{escape(texts[place])}</b> {percent(weight)} <span>{_distance(len(texts) - 1 - place)}'
        "</span></li>"
        for weight, place in zip(most.values.tolist(), most.indices.tolist(), strict=True)
    )
    tiles = []
    for block, (weight, place) in zip(
        BLOCKS, zip(*(part.tolist() for part in blocks.max(-1)), strict=True), strict=True
    ):
        tiles.append(
            f'<div class="mu-tile" title="{block.name}: {escape(block.meaning)}"><span class="mu-name">{block.name}'
            f'</span><div class="mu-look" style="{_mix(weight, "high")}"><b>{escape(texts[place])}</b>'
            f"<i>{percent(weight)}</i></div></div>"
        )
    return (
        f'<h3>Attention in layer {layer}</h3><p>{escape(who)}, over the text so far:</p><p class="mu-read">{row}</p>'
        + _legend("sequential", "0 %", "", percent(largest))
        + f'<ol class="mu-most">{first}</ol><p>Each block attends by itself. What it looked at most:</p>'
        f'<div class="mu-grid">{"".join(tiles)}</div>'
    )


def comparison_view(whole: Tensor, without: Tensor | None, off: Sequence[str]) -> str:
    """Surprise of the text with all blocks, and without those that are off; [T - 1] nats each."""
    if not len(whole):
        return "<h3>The text's probability</h3><p>A text of one token has none: nothing predicts the first.</p>"
    rows: tuple[tuple[str, Callable[[Tensor], float], int, Callable[[float, float], str]], ...] = (
        ("nats per token", lambda nll: float(nll.mean()), 3, lambda old, new: _minus(f"{new - old:+.3f}")),
        ("perplexity", lambda nll: math.exp(min(float(nll.mean()), 700)), 1, _times),
        ("nats, whole text", lambda nll: float(nll.sum()), 1, lambda old, new: _minus(f"{new - old:+.1f}")),
    )
    columns = ["all blocks"] if without is None else ["all blocks", f"without {named(off)}", "change"]
    table = []
    for name, of, digits, change in rows:
        cells = [readable(of(whole), digits)]
        if without is not None:
            cells += [readable(of(without), digits), change(of(whole), of(without))]
        table.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    more = "" if off else " Switch a block off, and what that changes stands beside."
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f"<h3>The text's probability</h3><p>{len(whole)} token{'s are' if len(whole) != 1 else ' is'} predicted. Fewer "
        f'nats: more probable.{more}</p><table class="mu-compare"><thead><tr><th></th>{head}</tr></thead><tbody>'
        f"{''.join(table)}</tbody></table>"
    )


def continuations_view(prompt: str, whole: str, without: str | None, off: Sequence[str]) -> str:
    """The continuation with all blocks beside that without some."""

    def box(title: str, text: str) -> str:
        return f'<div class="mu-box"><h4>{title}</h4>{prose_view(prompt, text)}</div>'

    second = ""
    if without is not None:
        second = box(f"Without {named(off)}{': the same' * (without == whole)}", without)
    return f'<h3>The continuation</h3><div class="mu-boxes">{box("All blocks", whole)}{second}</div>'


def prose_view(prompt: str, written: str) -> str:
    """The text to be read, what the model wrote set off from the prompt."""
    given, new = (escape(visible(part, spaces=False)) for part in (prompt, written))
    return f'<p class="mu-prose"><span class="mu-given">{given}</span>{new}</p>'


def message_view(text: str, error: bool = False) -> str:
    """A line about what is going on, or a sentence about what cannot be done."""
    if error:
        return f'<div class="mu-message mu-error" role="alert">{escape(visible(text, spaces=False))}</div>'
    return f'<div class="mu-message" role="status">{escape(text)}</div>'


def placeholder(text: str) -> str:
    return f'<p class="mu-placeholder">{escape(text)}</p>'


def _mark(asked: bool) -> str:
    return ' class="mu-asked"' if asked else ""


def _mix(strength: float, side: str) -> str:
    """A colour between the middle and an end of a scale; `playground.css` has both, and picks the ink."""
    return f"--mu-on:color-mix(in oklab,var(--mu-{side}) {100 * min(max(strength, 0), 1):.0f}%,var(--mu-middle))"


def _legend(scale: str, low: str, middle: str, high: str) -> str:
    ends = "".join(f"<span>{end}</span>" for end in (low, middle, high))
    return f'<div class="mu-legend"><i class="mu-{scale}"></i>{ends}</div>'


def _meanings() -> str:
    terms = "".join(f"<dt>{block.name}</dt><dd>{escape(block.meaning)}</dd>" for block in BLOCKS)
    return (
        f"<details><summary>What the 16 names stand for</summary><dl>{terms}</dl><p>The names are intentions: nothing "
        "in the model forces a block to carry what its name says.</p></details>"
    )


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _distance(places: int) -> str:
    return "itself" if places == 0 else "the token before" if places == 1 else f"{places} tokens before"


def _times(old: float, new: float) -> str:
    return f"× {new / old:,.2f}"
