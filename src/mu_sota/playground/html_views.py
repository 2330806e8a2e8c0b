"""The parts of the playground's page as HTML, made by the macros of `html_views.jinja`, which escapes every text.

Legend: T tokens of the text, L layers, N = 16 blocks, M side of the state matrix.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mu_sota.common.text import readable, visible
from mu_sota.model.blocks import BLOCKS, GRID, from_matrix, split_blocks

LIKELIEST = 3
_NUMBERED_LAYERS = 8  # the cells of a heat map of more layers are too narrow for numbers

# --- Texts and numbers ----------------------------------------------------------------------------------------------


def token_text(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """A token with every character visible; bytes of a byte-level token that are no UTF-8 character as `\\xNN`."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.all_special_ids or not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return visible(name)
    letters = _bytes_of_letters()
    return visible(bytes(letters[letter] for letter in name).decode("utf-8", errors="backslashreplace"))


@cache
def _bytes_of_letters() -> dict[str, int]:
    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def percent(probability: float) -> str:
    """A probability in few characters."""
    value = 100 * probability
    if value >= 9.95:
        return f"{value:.0f} %"
    if value >= 0.095:
        return f"{value:.1f} %"
    return f"{value:.2f} %" if value >= 0.01 else "<0.01 %"


def minus(number: str) -> str:
    """A number with a minus sign for its hyphen."""
    return number.replace("-", "−")


def _fixed(value: float, digits: int) -> str:
    return minus(f"{round(value, digits) + 0.0:.{digits}f}")  # + 0.0: no minus before a zero


def _colour(strength: float, end: str) -> str:
    """A colour between the middle and an end of a scale; `styles.css` has both, and picks the ink."""
    return f"--mu-on:color-mix(in oklab,var(--mu-{end}) {100 * min(max(strength, 0), 1):.0f}%,var(--mu-middle))"


# --- Parts of the page ----------------------------------------------------------------------------------------------


@cache
def _macros() -> Any:
    environment = Environment(
        loader=PackageLoader("mu_sota.playground", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "colour": _colour,
        "fixed": _fixed,
        "minus": minus,
        "percent": percent,
        "visible": visible,
    }
    environment.globals["BLOCKS"] = BLOCKS
    return environment.get_template("html_views.jinja").module


def _html(macro: str, *values: Any) -> str:
    return str(getattr(_macros(), macro)(*values))


def header_view(title: str, facts: str) -> str:
    """The head of the page."""
    return _html("header", title, facts)


def card_title(title: str, text: str = "") -> str:
    """The head of a card, and a sentence on it."""
    return _html("card_title", title, text)


class Shown(NamedTuple):
    """One token of the strip."""

    text: str  # as `token_text` gives it
    probability: float | None  # None for the first token, which nothing predicts
    alternatives: list[tuple[str, float]]  # the likeliest tokens at this position
    written: bool = False  # by the model, not in the prompt
    change: float | None = None  # nats by which the changed model finds it more (+) or less (-) surprising


def token_strip(
    tokens: Sequence[Shown],
    following: Sequence[tuple[str, float]] = (),
    selected: int = -1,
    title: str = "",
) -> str:
    """The tokens as buttons, each with its probability and the likeliest tokens at its position.

    Args:
        following: the likeliest tokens after the text.
        selected: the token that is inspected.
        title: of the change of the model, to which the tokens' `change` is due; empty if there is none.
    """
    if not tokens:
        return placeholder("Tokens appear here: write a prompt, then press Generate or Read.")
    return _html("token_strip", tokens, following, selected, title)


def token_heading(position: int, text: str, title: str) -> str:
    """Which token is inspected, and with what change of the model."""
    return _html("token_heading", position, text, title)


def state_view(matrix: Tensor, layer: int, off: Sequence[str] = ()) -> str:
    """A state [M, M], tiled by its 16 named blocks; those that are off are marked."""
    largest = max(float(matrix.abs().max()), 1e-9)
    values = split_blocks(from_matrix(matrix)).tolist()
    return _html("state", values, len(matrix) // GRID, layer, off, largest, 1 if largest >= 0.5 else 2)


class Carried(NamedTuple):
    """What a block is asked for in its name, and how it answers.

    Attributes:
        name, meaning: of the block.
        question: what a probe reads off it; one row a question.
        selectivity: the share of what there is to know that it holds, less that of shuffled labels; None if not asked.
        rank: among the 16 blocks, at all its questions together.
        best: the block that holds most of the answer.
        needed: its rank by the rise of the loss without it.
    """

    name: str
    meaning: str
    question: str
    selectivity: float | None
    rank: int | None
    best: str
    needed: int | None


def carried_view(inspection: dict[str, Any]) -> str:
    """A table of what `mu-sota inspect` found, or how to have one."""
    if not inspection:
        return _html("carried", [], 0, "")
    found, names = inspection["legibility"], [block["name"] for block in inspection["blocks"]]
    needed = inspection.get("effects", {}).get("ranking", [])
    rows = []
    for number, block in enumerate(inspection["blocks"]):
        name = block["name"]
        need = needed.index(name) + 1 if name in needed else None
        asked = [task for task in found["tasks"] if task["block"] == name]
        for task in asked:
            values = task["selectivity"]
            best = names[max(range(len(values)), key=values.__getitem__)]
            rank = found["rank_at_own_task"][name]
            rows.append(Carried(name, block["meaning"], task["question"], values[number], rank, best, need))
        if not asked:
            rows.append(Carried(name, block["meaning"], "not asked", None, None, "", need))
    return _html("carried", rows, len(found["best_blocks"]), ", ".join(found["best_blocks"]))


def sensitivity_view(sensitivities: Tensor, layer: int) -> str:
    """Sensitivities [L, N] of one token: a row a block, a column a layer; the chosen layer is marked."""
    largest = max(float(sensitivities.abs().max()), 1e-9)
    return _html("sensitivity", sensitivities.T.tolist(), layer, largest, len(sensitivities) <= _NUMBERED_LAYERS)


def attention_view(texts: Sequence[str], weights: Tensor, blocks: Tensor, layer: int, who: str) -> str:
    """The tokens that the last of `texts` attends to.

    Args:
        texts: the tokens up to the inspected one.
        weights: [len(texts)], of the chosen attention.
        blocks: [N, len(texts)], of the block attentions.
        layer: counted from 1.
        who: the name of the chosen attention.
    """
    most = weights.topk(min(LIKELIEST, len(texts)))
    pairs = (
        list(zip(values.tolist(), positions.tolist(), strict=True)) for values, positions in (most, blocks.max(-1))
    )
    return _html("attention", texts, weights.tolist(), *pairs, layer, who)


def no_attention_view() -> str:
    """Of the embedding."""
    return _html("no_attention")


def probability_view(as_trained: Tensor, changed: Tensor | None, title: str) -> str:
    """The text's probability by the model as trained, and as it is changed; [T - 1] nats each."""
    figures: tuple[tuple[str, Callable[[Tensor], float], int, Callable[[float, float], str]], ...] = (
        ("nats per token", lambda nll: float(nll.mean()), 3, lambda old, new: minus(f"{new - old:+.3f}")),
        ("perplexity", lambda nll: math.exp(min(float(nll.mean()), 700)), 1, lambda old, new: f"× {new / old:,.2f}"),
        ("nats, whole text", lambda nll: float(nll.sum()), 1, lambda old, new: minus(f"{new - old:+.1f}")),
    )
    columns = ["as trained"] if changed is None else ["as trained", title, "change"]
    rows = []
    for name, of, digits, change in figures:
        cells = [readable(of(as_trained), digits)]
        if changed is not None:
            cells += [readable(of(changed), digits), change(of(as_trained), of(changed))]
        rows.append((name, cells))
    return _html("probability", len(as_trained), columns, rows)


def continuations_view(prompt: str, as_trained: str, changed: str | None, title: str) -> str:
    """The continuation by the model as trained beside that by the changed model."""
    return _html("continuations", prompt, as_trained, changed, title)


def moves_view(steering: Mapping[str, Any]) -> str:
    """What the sliders do that move blocks, or how to have them."""
    return _html("moves", steering)


def prose_view(prompt: str, written: str) -> str:
    """The text to be read; what the model wrote is set off from the prompt."""
    return _html("prose", prompt, written)


def message_view(text: str, error: bool = False) -> str:
    """A line on what the page does, or a sentence on what it cannot do."""
    return _html("message", visible(text, spaces=False), error)


def placeholder(text: str) -> str:
    """A text where there will be a part of the page."""
    return _html("placeholder", text)
