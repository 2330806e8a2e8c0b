"""A text that the model has read or is writing, as HTML: its tokens, its states and attention, its probability."""

import math

from transformers import PreTrainedTokenizerFast

from mu_sota.generation.continuation import text_of
from mu_sota.inspection.tracing import Trace
from mu_sota.model.blocks import BLOCKS

from .html_views import (
    LIKELIEST,
    Shown,
    attention_view,
    continuations_view,
    no_attention_view,
    probability_view,
    prose_view,
    sensitivity_view,
    state_view,
    token_heading,
    token_strip,
    token_text,
)
from .session import Reading, Step

NAMES = [block.name for block in BLOCKS]


class ReadingViews:
    """HTML of readings, with the tokenizer that made their ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def strip(self, reading: Reading, selected: int) -> str:
        """The token strip of a finished text."""
        changes: list[float | None] = [None] * len(reading.ids)
        if reading.nll_changed is not None:
            changes[1:] = (reading.nll_changed - reading.nll_as_trained).tolist()
        tokens = [
            token._replace(change=change)
            for token, change in zip(self.shown(reading.trace, reading.prompt_length), changes, strict=True)
        ]
        return token_strip(tokens, self._likeliest(reading.trace, len(reading.ids) - 1), selected, reading.change.title)

    def shown(self, trace: Trace, prompt_length: int) -> list[Shown]:
        """The tokens of a text; the model wrote those after the first `prompt_length`."""
        tokens = []
        for position, (token, log_prob) in enumerate(zip(trace.ids.tolist(), trace.log_probs.tolist(), strict=True)):
            own = math.exp(log_prob) if position else None
            likeliest = self._likeliest(trace, position - 1) if position else []
            tokens.append(Shown(self._text(token), own, likeliest, position >= prompt_length))
        return tokens

    def step(self, step: Step) -> Shown:
        """A token that was just written."""
        pairs = zip(step.top_ids, step.top_log_probs, strict=True)
        likeliest = [(self._text(token), math.exp(log_prob)) for token, log_prob in pairs]
        return Shown(self._text(step.token), math.exp(step.log_prob), likeliest, written=True)

    def prose(self, ids: list[int], prompt_length: int) -> str:
        """A text to be read."""
        prompt = text_of(self.tokenizer, ids[:prompt_length])
        return prose_view(prompt, text_of(self.tokenizer, ids)[len(prompt) :])

    def inspected(self, reading: Reading, position: int, layer: int, kind: str) -> tuple[str, str, str, str]:
        """Heading, state, sensitivities and attention of one token after a layer, 0 the embedding.

        Args:
            kind: of attention: a block's name, `head 1`, `head 2`, ..., or `mean` of the heads.
        """
        texts = [self._text(token) for token in reading.ids[: position + 1]]
        return (
            token_heading(position, texts[-1], reading.change.title),
            state_view(reading.trace.matrix(position, layer), layer, reading.change.off),
            sensitivity_view(reading.trace.sensitivities[:, position], layer),
            _attention(reading.trace, texts, layer, kind) if layer else no_attention_view(),
        )

    def compared(self, reading: Reading, other: list[int] | None) -> tuple[str, str]:
        """The text's probability, and the prompt's continuation, of the model as trained and as it is changed.

        Args:
            other: the continuation by the changed model.
        """
        prompt = text_of(self.tokenizer, reading.prompt)
        as_trained, changed = (
            text_of(self.tokenizer, [*reading.prompt, *new])[len(prompt) :]
            for new in (reading.continuation, other or [])
        )
        return (
            probability_view(reading.nll_as_trained, reading.nll_changed, reading.change.title),
            continuations_view(prompt, as_trained, None if other is None else changed, reading.change.title),
        )

    def _text(self, token: int) -> str:
        return token_text(self.tokenizer, token)

    def _likeliest(self, trace: Trace, position: int) -> list[tuple[str, float]]:
        """The likeliest tokens after a position."""
        tokens = trace.top_ids[position, :LIKELIEST].tolist()
        values = trace.top_log_probs[position, :LIKELIEST].exp().tolist()
        return [(self._text(token), value) for token, value in zip(tokens, values, strict=True)]


def _attention(trace: Trace, texts: list[str], layer: int, kind: str) -> str:
    rows = trace.attention(len(texts) - 1, layer)
    heads, number = len(rows.cross), kind.partition(" ")[2]
    if kind in NAMES:
        weights, who = rows.block[NAMES.index(kind)], f"Attention of block {kind}"
    elif number:
        weights, who = rows.cross[int(number) - 1], f"Cross-block attention, head {number} of {heads}"
    else:
        weights, who = rows.cross.mean(0), f"Cross-block attention, mean of its {heads} heads"
    return attention_view(texts, weights, rows.block, layer, who)
