"""What the page does when a visitor clicks: each callback returns the components that change, with their new values."""

import traceback
from collections.abc import Iterator
from threading import Event
from typing import Any, NamedTuple

import gradio as gr

from mu_sota.inspection.tracing import Trace
from mu_sota.model.errors import InputError
from mu_sota.settings.sampling import Generation

from .cards import NO_PROBABILITY, NONE_CHOSEN, ChangedCard, InsideCard, PromptCard
from .change import Change, chosen
from .html_views import Shown, message_view, placeholder, probability_view, token_strip
from .reading_views import ReadingViews
from .session import Reading, Session, Step

NO_TEXT = "No token can be looked into: the text is not done yet, or newer pages took its place. Then read it again."
_SETTINGS = len(Generation.model_fields)


class Parts(NamedTuple):
    """The components of the page that callbacks read or change."""

    reading: gr.State  # a Reading, or None while there is no finished text
    selected: gr.State  # position of the chosen token
    ask: PromptCard
    strip: gr.HTML
    inside: InsideCard
    changed: ChangedCard


class Look(NamedTuple):
    """What the visitor has chosen to see."""

    change: Change
    layer: int
    kind: str  # of attention


class Callbacks:
    """The page's functions. Those named `on_...` answer events; an error becomes a sentence on the page."""

    def __init__(self, session: Session, parts: Parts) -> None:
        self.session = session
        self.views = ReadingViews(session.tokenizer)
        self.parts = parts
        self.panels = list(parts.inside[2:])
        self.stopped: dict[str, Event] = {}  # of each visitor's generation

    def on_generate(
        self, request: gr.Request, text: str, on: list[str], layer: int, kind: str, *fields: Any
    ) -> Iterator[dict[Any, Any]]:
        """Continue the prompt, token by token; `fields` are those of sampling, then the strengths."""
        try:
            generation = _generation(fields[:_SETTINGS])
            ids = self.session.ids(text, 1)
        except InputError as error:
            yield self._refused(error)
            return
        visitor = str(request.session_hash)
        stopped = self.stopped[visitor] = Event()
        try:
            yield {self.parts.reading: None, self.parts.ask.stop: gr.Button(interactive=True)}
            yield from self._write(ids, generation, stopped, Look(self._change(on, fields[_SETTINGS:]), layer, kind))
        except Exception as error:
            yield self._refused(error)
        finally:
            self.stopped.pop(visitor, None)

    def on_read(self, text: str, on: list[str], layer: int, kind: str, *fields: Any) -> dict[Any, Any]:
        """Read the prompt; `fields` as above."""
        try:
            generation = _generation(fields[:_SETTINGS])
            ids = self.session.ids(text, 0)
            reading = self.session.read(ids, generation)
            look = Look(self._change(on, fields[_SETTINGS:]), layer, kind)
            return self._finished(reading, len(ids) - 1, look, f"Read {_tokens(len(ids))}.")
        except Exception as error:
            return self._refused(error)

    def on_stop(self, request: gr.Request) -> None:
        """End this visitor's generation after the token in progress."""
        if stopped := self.stopped.get(str(request.session_hash)):
            stopped.set()

    def on_pick(self, event: gr.EventData, reading: Reading | None, layer: int, kind: str) -> dict[Any, Any]:
        """Look inside the token that was clicked."""
        position = int(event.index)
        return {self.parts.selected: position, **self.on_look(reading, position, layer, kind)}

    def on_look(self, reading: Reading | None, position: int, layer: int, kind: str) -> dict[Any, Any]:
        """Show the chosen token in another layer, or another attention."""
        if reading is None or position >= len(reading.ids):
            return {self.parts.inside.heading: placeholder(NO_TEXT)}
        return dict(zip(self.panels, self.views.inspected(reading, position, layer, kind), strict=True))

    def on_switch(
        self, reading: Reading | None, position: int, on: list[str], layer: int, kind: str, *strengths: float
    ) -> Iterator[dict[Any, Any]]:
        """Read the text again with the model changed in another way; then continue its prompt so."""
        if reading is None:
            return
        try:
            reading = self.session.switch(reading, self._change(on, strengths))
            probability = probability_view(reading.nll_as_trained, reading.nll_changed, reading.change.title)
            yield {
                self.parts.reading: reading,
                self.parts.strip: self.views.strip(reading, position),
                self.parts.changed.probability: probability,
                **self.on_look(reading, position, layer, kind),
            }
            yield self._compared(reading)
        except Exception as error:
            yield self._refused(error)

    def _change(self, on: list[str], strengths: tuple[float, ...]) -> Change:
        return chosen(on, dict(zip(self.parts.changed.strengths, strengths, strict=True)))

    def _write(self, ids: list[int], generation: Generation, stopped: Event, look: Look) -> Iterator[dict[Any, Any]]:
        shown: list[Shown] = []
        so_far = list(ids)
        for steps in self.session.write(ids, generation, stopped):
            for step in steps:
                if isinstance(step, Trace):
                    shown += self.views.shown(step, len(ids))
                elif isinstance(step, Step):
                    shown.append(self.views.step(step))
                    so_far.append(step.token)
                else:
                    summary = self._summary(step, generation.max_new_tokens, stopped.is_set())
                    yield self._finished(step, min(len(ids), len(step.ids) - 1), look, summary)
                    return
            yield {
                self.parts.strip: token_strip(shown),
                self.parts.ask.prose: self.views.prose(so_far, len(ids)),
                self.parts.ask.message: message_view("Writing …"),
            }

    def _summary(self, reading: Reading, asked: int, stopped: bool) -> str:
        positions, written = self.session.positions, len(reading.ids) - reading.prompt_length
        summary = f"{'Stopped after' if stopped else 'Wrote'} {_tokens(written)}; the prompt has {len(reading.prompt)}."
        if len(reading.ids) == positions and written < asked:
            summary += f" That is all that fits into {positions} positions."
        return summary

    def _finished(self, reading: Reading, position: int, look: Look, summary: str) -> dict[Any, Any]:
        """All parts of the page for a text just read, with the model changed as the visitor has chosen."""
        if look.change:
            reading = self.session.switch(reading, look.change)
        return {
            self.parts.reading: reading,
            self.parts.selected: position,
            self.parts.strip: self.views.strip(reading, position),
            self.parts.ask.message: message_view(summary),
            self.parts.ask.prose: self.views.prose(reading.ids, reading.prompt_length),
            self.parts.ask.stop: gr.Button(interactive=False),
            **self.on_look(reading, position, look.layer, look.kind),
            **self._compared(reading),
        }

    def _compared(self, reading: Reading) -> dict[Any, Any]:
        other = self.session.continuation(reading) if reading.change else None
        probability, continuation = self.views.compared(reading, other)
        return {self.parts.changed.probability: probability, self.parts.changed.continuation: continuation}

    def _refused(self, error: Exception) -> dict[Any, Any]:
        """The sentence, and nothing of an earlier text below it."""
        inside, changed, ask = self.parts.inside, self.parts.changed, self.parts.ask
        return {
            self.parts.reading: None,
            self.parts.strip: token_strip([]),
            ask.message: message_view(_sentence(error), error=True),
            ask.prose: "",
            ask.stop: gr.Button(interactive=False),
            **dict.fromkeys(self.panels, ""),
            inside.heading: placeholder(NONE_CHOSEN),
            changed.probability: placeholder(NO_PROBABILITY),
            changed.continuation: "",
        }


def _generation(sampling: tuple[Any, ...]) -> Generation:
    """Settings from the page's fields, in the order of `Generation`.

    Raises:
        InputError: a value is out of range.
    """
    return Generation().with_changes(dict(zip(Generation.model_fields, sampling, strict=True)))


def _sentence(error: Exception) -> str:
    """For the visitor; an error that is not the visitor's mistake is printed in full in the terminal."""
    if isinstance(error, InputError):
        return str(error)
    traceback.print_exception(error)
    return f"the model failed: {type(error).__name__}: {' '.join(str(error).split())[:300] or 'no more is known'}"


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
