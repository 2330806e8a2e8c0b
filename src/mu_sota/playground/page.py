"""A local page to look at a trained model: what it writes, what stands in its blocks, and what it is without some.

Legend: T tokens of the text.
"""

import math
import os
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import gradio as gr
import torch
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor
from transformers import PreTrainedTokenizerFast, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mu_sota.common.environment import default_device
from mu_sota.generation.continuation import continued, prompt_ids, text_of
from mu_sota.inspection.ablation import blocks_off
from mu_sota.inspection.tracing import Trace, trace
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.load_save import load_trained
from mu_sota.saved.run_record import BEST_FOLDER
from mu_sota.settings.sampling import Generation

from .html_views import (
    LIKELIEST,
    Shown,
    attention_view,
    comparison_view,
    continuations_view,
    message_view,
    named,
    placeholder,
    prose_view,
    sensitivity_view,
    state_view,
    token_strip,
    token_text,
)

HOST = "127.0.0.1"
MAX_CHARACTERS = 20_000
PORTS_TRIED = 100
FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
NAMES = [block.name for block in BLOCKS]

# --- What the page does ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A text the model has read, as one visitor of the page sees it."""

    ids: list[int]
    given: int  # tokens of the prompt; the others are written by the model
    generation: Generation
    whole: Tensor  # [T - 1] nats with all blocks
    continuation: list[int]  # with all blocks, of the prompt
    seen: Trace  # with the blocks as they are switched now
    off: tuple[str, ...] = ()

    @property
    def without(self) -> Tensor | None:
        """[T - 1] nats without the blocks that are off, if any is."""
        return self.seen.nll if self.off else None

    @property
    def prompt(self) -> list[int]:
        return self.ids[: self.given]


class _Step(NamedTuple):
    """A token the model has just written, with the likeliest ones of its place before anything was drawn."""

    token: int
    log_prob: float
    top_ids: list[int]
    top_log_probs: list[float]


class _Streamer(BaseStreamer):
    """Hands over every token as soon as it is drawn."""

    def __init__(self, model: MuForCausalLM, seen: Callable[[_Step], None]) -> None:
        self.seen = seen
        self.prompt_is_next = True
        self.log_probs = torch.empty(0)
        self.hook = model.register_forward_hook(self._predicted)  # for whoever made this to remove

    def _predicted(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.log_probs = output.logits[0, -1].float().log_softmax(-1)

    def put(self, value: Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        token, top = int(value.item()), self.log_probs.topk(min(LIKELIEST, len(self.log_probs)))
        self.seen(_Step(token, float(self.log_probs[token]), top.indices.tolist(), top.values.tolist()))

    def end(self) -> None:
        """Nothing is held back."""


class Looking:
    """The model, and all the page asks of it; one question at a time, since hooks are the model's, not a visitor's."""

    def __init__(self, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.lock = threading.Lock()
        self.stopped: dict[str, threading.Event] = {}  # of each visitor's generation

    def ids(self, text: str, new: int) -> list[int]:
        """Token ids of a text the model has room for.

        Raises:
            InputError: the text is too long, or not Unicode.
        """
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"the text has {len(text):,} characters, but at most {MAX_CHARACTERS:,} are read here; shorten it"
            )
        return prompt_ids(self.tokenizer, text, new, self.model.config.max_position_embeddings)

    def write(
        self, ids: list[int], generation: Generation, stopped: threading.Event
    ) -> Iterator[list[Trace | _Step | Reading]]:
        """Continue a text: a trace of the prompt, then every token as it comes, then the reading of the whole.

        What comes while the page is busy is handed over together, so that a long text does not fall behind.
        The model works in a thread of its own and never waits for the page, which may have been closed.
        """
        arrived: SimpleQueue[Trace | _Step | Reading | BaseException] = SimpleQueue()

        def work() -> None:
            try:
                with self.lock:
                    arrived.put(trace(self.model, ids))
                    streamer = _Streamer(self.model, arrived.put)
                    try:
                        whole = self._continued(
                            ids,
                            generation,
                            streamer=streamer,
                            stopping_criteria=StoppingCriteriaList([_until(stopped)]),
                        )
                    finally:
                        streamer.hook.remove()
                    written = whole[len(ids) :]
                    kept = generation.changed("max_new_tokens", len(written)) if stopped.is_set() else generation
                    arrived.put(self._reading(whole, len(ids), kept, written))
            except BaseException as error:
                arrived.put(error)

        threading.Thread(target=work, daemon=True).start()
        steps: list[Trace | _Step | Reading] = []
        while not steps or not isinstance(steps[-1], Reading):
            steps = []
            while not steps or not arrived.empty():
                step = arrived.get()
                if isinstance(step, BaseException):
                    raise step
                steps.append(step)
            yield steps

    def read(self, ids: list[int], generation: Generation) -> Reading:
        """Read a text without writing; its continuation, for comparison, is of as many tokens as there is room for."""
        with self.lock:
            return self._reading(ids, len(ids), generation, self._continued(ids, generation)[len(ids) :])

    def switch(self, reading: Reading, off: tuple[str, ...]) -> Reading:
        """The same text, read with other blocks off."""
        with self.lock, blocks_off(self.model, off):
            return replace(reading, seen=trace(self.model, reading.ids), off=off)

    def continuation(self, reading: Reading) -> list[int]:
        """What the model writes after the prompt with the blocks as they are; same settings, same seed."""
        with self.lock, blocks_off(self.model, reading.off):
            return self._continued(reading.prompt, reading.generation)[reading.given :]

    def _reading(self, ids: list[int], given: int, generation: Generation, continuation: list[int]) -> Reading:
        seen = trace(self.model, ids)
        return Reading(ids, given, generation, seen.nll, continuation, seen)

    def _continued(self, ids: list[int], generation: Generation, **more: Any) -> list[int]:
        new = min(generation.max_new_tokens, self.model.config.max_position_embeddings - len(ids))
        return continued(self.model, self.tokenizer, ids, generation, new, generation.seed, **more) if new else ids

    def text(self, token: int) -> str:
        """A token as it is shown."""
        return token_text(self.tokenizer, token)

    def strip(self, reading: Reading, selected: int) -> str:
        """The token strip of a text that is done."""
        changes: list[float | None] = [None] * len(reading.ids)
        if reading.without is not None:
            changes[1:] = (reading.without - reading.whole).tolist()
        tokens = [
            token._replace(change=change)
            for token, change in zip(self.shown(reading.seen, reading.given), changes, strict=True)
        ]
        return token_strip(tokens, self._likeliest(reading.seen, len(reading.ids) - 1), selected, reading.off)

    def shown(self, seen: Trace, given: int) -> list[Shown]:
        """The tokens of a text, all after the first `given` written by the model."""
        tokens = []
        for place, (token, log_prob) in enumerate(zip(seen.ids.tolist(), seen.log_probs.tolist(), strict=True)):
            own = math.exp(log_prob) if place else None
            tokens.append(
                Shown(self.text(token), own, self._likeliest(seen, place - 1) if place else [], place >= given)
            )
        return tokens

    def prose(self, ids: list[int], given: int) -> str:
        """A text to be read."""
        prompt = text_of(self.tokenizer, ids[:given])
        return prose_view(prompt, text_of(self.tokenizer, ids)[len(prompt) :])

    def step(self, step: _Step) -> Shown:
        """A token that was just written."""
        pairs = zip(step.top_ids, step.top_log_probs, strict=True)
        likeliest = [(self.text(token), math.exp(log_prob)) for token, log_prob in pairs]
        return Shown(self.text(step.token), math.exp(step.log_prob), likeliest, written=True)

    def _likeliest(self, seen: Trace, place: int) -> list[tuple[str, float]]:
        """The likeliest tokens after a place."""
        tokens = seen.top_ids[place, :LIKELIEST].tolist()
        values = seen.top_log_probs[place, :LIKELIEST].exp().tolist()
        return [(self.text(token), value) for token, value in zip(tokens, values, strict=True)]

    def inspected(self, reading: Reading, position: int, layer: int, kind: str) -> tuple[str, str, str, str]:
        """Heading, state, sensitivities and attention of one token."""
        seen = reading.seen
        texts = [self.text(token) for token in reading.ids[: position + 1]]
        off = f" <em>without {named(reading.off)}</em>" if reading.off else ""
        heading = f'<p class="mu-heading">Token {position + 1}: <b class="mu-chip">{escape(texts[-1])}</b>{off}</p>'
        if layer:
            rows = seen.attention(position, layer)
            heads, number = len(rows.cross), kind.partition(" ")[2]
            if kind in NAMES:
                weights, who = rows.block[NAMES.index(kind)], f"Attention of block {kind}"
            elif number:
                weights, who = rows.cross[int(number) - 1], f"Cross-block attention, head {number} of {heads}"
            else:
                weights, who = rows.cross.mean(0), f"Cross-block attention, mean of its {heads} heads"
            attention = attention_view(texts, weights, rows.block, layer, who)
        else:
            attention = "<h3>Attention</h3><p>Before the first layer nothing has been attended to.</p>"
        return (
            heading,
            state_view(seen.matrix(position, layer), layer, reading.off),
            sensitivity_view(seen.sensitivities[:, position], layer),
            attention,
        )

    def compared(self, reading: Reading, other: list[int] | None) -> tuple[str, str]:
        """The text's probability, and the continuation, with all blocks and without those that are off."""
        texts = [text_of(self.tokenizer, reading.prompt)]
        texts += [
            text_of(self.tokenizer, [*reading.prompt, *new])[len(texts[0]) :]
            for new in (reading.continuation, other or [])
        ]
        return (
            comparison_view(reading.whole, reading.without, reading.off),
            continuations_view(texts[0], texts[1], None if other is None else texts[2], reading.off),
        )


def _until(stopped: threading.Event) -> Callable[..., Tensor]:
    def criterion(ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(ids),), stopped.is_set(), device=ids.device)

    return criterion


def _generation(*values: Any) -> Generation:
    """Settings from the page's fields, in the order of `Generation`.

    Raises:
        InputError: a value is out of range.
    """
    settings = Generation()
    for key, value in zip(FIELDS, values, strict=True):
        whole = isinstance(value, float) and value.is_integer() and isinstance(getattr(settings, key), int)
        settings = settings.changed(key, int(value) if whole else value)
    return settings


# --- The page --------------------------------------------------------------------------------------------------------

_STRIP_SCRIPT = """
const tokens = () => [...element.querySelectorAll('button.mu-token')];
element.addEventListener('click', (event) => {
  const token = event.target.closest('button.mu-token');
  if (!token) return;
  tokens().forEach((other) => other.setAttribute('aria-pressed', String(other === token)));
  trigger('pick', {index: Number(token.dataset.index)});
  setTimeout(() => {  // once what is inside has come, bring it into sight
    const inside = document.querySelector('#mu-panels'), still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    if (inside.getBoundingClientRect().top < innerHeight / 2) return;
    inside.scrollIntoView({block: 'nearest', behavior: still ? 'auto' : 'smooth'});
  }, 300);
});
element.addEventListener('keydown', (event) => {
  const all = tokens(), at = all.indexOf(document.activeElement);
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1}[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  if (all[to]) all[to].focus();
});
"""

_PAGE_SCRIPT = """
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  document.querySelector('#mu-generate')?.click();
});
"""

_SYLLABLES = ("coher-ence", "docu-ment", "know-ledge", "rela-tions", "seman-tic", "struc-ture", "transfor-mation")
_NONE_CHOSEN = "No token is chosen yet."
_NO_PROBABILITY = "The text's probability appears here."
_HINT = "Generate (Ctrl+Enter) writes on after the prompt. Read shows the prompt as the model sees it."

# A page elsewhere can have its name lead to this machine, and would then be asked for as if it were the page's own.
_ONLY_THIS_MACHINE = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def _slider(*arguments: Any, **more: Any) -> gr.Slider:
    """A slider whose box of numbers may be left empty: that stands for what it held at first."""
    slider = gr.Slider(*arguments, **more)
    number = slider.preprocess
    # No subclass: for one, Gradio writes a .pyi file beside this module.
    slider.preprocess = lambda payload: number(slider.value if payload is None else payload)  # type: ignore[method-assign]
    return slider


def build(model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, title: str) -> gr.Blocks:
    """The page of a model in eval mode; `launch` it with `look()`."""
    looking = Looking(model, tokenizer)
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    one_at_a_time: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": 1}
    default = Generation()

    with gr.Blocks(title=f"mu-sota playground: {title}", analytics_enabled=False, fill_width=True) as page:
        reading = gr.State(None)
        selected = gr.State(0)
        gr.HTML(
            f"<header><h1>mu-sota playground</h1><p><b>{escape(title)}</b> · {layers} layers · 16 blocks in "
            f"{config.matrix_size} × {config.matrix_size} · {config.vocab_size:,} tokens · "
            f"{model.num_parameters():,} parameters</p></header>",
            elem_id="mu-header",
        )
        with gr.Column(elem_id="mu-ask", elem_classes="mu-card"):
            prompt = gr.Textbox(
                "The file object",
                label="Prompt",
                info=f"{config.max_position_embeddings} tokens of room, for the prompt and what is written after it.",
                lines=2,
                max_lines=8,
                elem_id="mu-prompt",
                html_attributes=gr.InputHTMLAttributes(spellcheck=False, autocorrect="off", autocapitalize="off"),
            )
            with gr.Row(elem_id="mu-actions"):
                generate = gr.Button("Generate", variant="primary", elem_id="mu-generate", min_width=0, scale=2)
                read = gr.Button("Read", elem_id="mu-read", min_width=0)
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="mu-stop", min_width=0)
            with gr.Accordion("Sampling", open=False, elem_id="mu-sampling"), gr.Row():
                wide: dict[str, Any] = {"min_width": 260}
                room = config.max_position_embeddings
                new = min(default.max_new_tokens, max(room // 2, 1))
                fields = [
                    _slider(
                        0,
                        2,
                        default.temperature,
                        step=0.05,
                        label="Temperature",
                        info="0: always the likeliest",
                        **wide,
                    ),
                    _slider(0, 200, default.top_k, step=1, label="Top k", info="0: all tokens", **wide),
                    _slider(0.05, 1, default.top_p, step=0.05, label="Top p", info="share of probability", **wide),
                    _slider(
                        1, 2, default.repetition_penalty, step=0.05, label="Repetition penalty", info="1: none", **wide
                    ),
                    _slider(1, max(room - 1, 2), new, step=1, label="New tokens", info="at most", **wide),
                    gr.Number(default.seed, precision=0, label="Seed", info="same seed, same text", **wide),
                ]
            message = gr.HTML(message_view(_HINT), elem_id="mu-message")
            prose = gr.HTML(elem_id="mu-prose")

        with gr.Column(elem_id="mu-text", elem_classes="mu-card"):
            gr.HTML(
                "<h2>Tokens</h2><p>Below each token: its probability, and the likeliest tokens of its place. "
                "Click one, or press Enter on it, to look inside.</p>"
            )
            strip = gr.HTML(token_strip([]), js_on_load=_STRIP_SCRIPT, elem_id="mu-strip")

        with gr.Column(elem_id="mu-inside", elem_classes="mu-card"):
            gr.HTML("<h2>Inside a token</h2>")
            heading = gr.HTML(placeholder(_NONE_CHOSEN), elem_id="mu-which")
            with gr.Row():
                layer = _slider(
                    0,
                    layers,
                    layers,
                    step=1,
                    precision=0,
                    label="Layer",
                    info="0: the embedding",
                    elem_id="mu-layer",
                    min_width=220,
                )
                kind = gr.Dropdown(
                    [
                        ("Cross-block, mean of heads", "mean"),
                        *((f"Cross-block, head {number}", f"head {number}") for number in range(1, heads + 1)),
                        *((f"Block {block.name}: {block.meaning}", block.name) for block in BLOCKS),
                    ],
                    value="mean",
                    label="Attention",
                    info="which of the layer's attentions",
                    filterable=False,
                    elem_id="mu-kind",
                    min_width=220,
                )
            with gr.Row(elem_id="mu-panels"):
                with gr.Column(min_width=300):
                    state = gr.HTML(elem_id="mu-state")
                with gr.Column(min_width=300):
                    sensitivity = gr.HTML(elem_id="mu-sensitivity")
                with gr.Column(min_width=300):
                    attention = gr.HTML(elem_id="mu-attention")

        with gr.Column(elem_id="mu-without", elem_classes="mu-card"):
            gr.HTML(
                "<h2>Without some blocks</h2><p>A block that is off reads as 0 in every layer. The text above is read "
                "again, and its prompt continued with the same seed.</p>"
            )
            with gr.Row():
                with gr.Column(min_width=300, scale=5):
                    on = gr.CheckboxGroup(
                        [(f"{block.name}\n{_short(block.meaning)}", block.name) for block in BLOCKS],
                        value=NAMES,
                        label="Blocks that are on",
                        elem_id="mu-switches",
                    )
                    all_on = gr.Button("All on", size="sm", elem_id="mu-all-on")
                with gr.Column(min_width=300, scale=6):
                    probability = gr.HTML(placeholder(_NO_PROBABILITY), elem_id="mu-probability")
                    continuation = gr.HTML(elem_id="mu-continuations")

        panels = [heading, state, sensitivity, attention]

        def inside(about: Reading | None, position: int, at: int, which: str) -> dict[Any, Any]:
            if about is None or position >= len(about.ids):
                return {heading: placeholder("No token can be looked into before the text is done.")}
            return dict(zip(panels, looking.inspected(about, position, at, which), strict=True))

        def below(about: Reading, other: list[int] | None) -> dict[Any, Any]:
            return dict(zip([probability, continuation], looking.compared(about, other), strict=True))

        def finished(about: Reading, position: int, on: list[str], at: int, which: str, said: str) -> dict[Any, Any]:
            """All parts of the page, for a text just read; with the blocks as they are switched."""
            off = tuple(name for name in NAMES if name not in on)
            if off:
                about = looking.switch(about, off)
            return {
                reading: about,
                selected: position,
                strip: looking.strip(about, position),
                message: message_view(said),
                prose: looking.prose(about.ids, about.given),
                stop: gr.Button(interactive=False),
                **inside(about, position, at, which),
                **below(about, looking.continuation(about) if off else None),
            }

        def refused(error: Exception) -> dict[Any, Any]:
            """The sentence, and nothing of an earlier text below it."""
            return {
                message: message_view(_sentence(error), error=True),
                reading: None,
                stop: gr.Button(interactive=False),
                strip: token_strip([]),
                heading: placeholder(_NONE_CHOSEN),
                probability: placeholder(_NO_PROBABILITY),
                **dict.fromkeys([prose, state, sensitivity, attention, continuation], ""),
            }

        def on_generate(
            request: gr.Request, text: str, on: list[str], at: int, which: str, *values: Any
        ) -> Iterator[dict[Any, Any]]:
            try:
                wanted = _generation(*values)
                ids = looking.ids(text, 1)
            except InputError as error:
                yield refused(error)
                return
            visitor = str(request.session_hash)
            stopped = looking.stopped[visitor] = threading.Event()
            try:
                yield {reading: None, stop: gr.Button(interactive=True)}
                shown: list[Shown] = []
                so_far = list(ids)
                for steps in looking.write(ids, wanted, stopped):
                    for step in steps:
                        if isinstance(step, Reading):
                            written = len(step.ids) - step.given
                            did = "Stopped after" if stopped.is_set() else "Wrote"
                            all_room = len(step.ids) == room and written < wanted.max_new_tokens
                            said = f"{did} {_tokens(written)}; the prompt has {len(ids)}." + (
                                f" That is all that fits into {room} positions." * all_room
                            )
                            yield finished(step, min(len(ids), len(step.ids) - 1), on, at, which, said)
                            break
                        if isinstance(step, Trace):
                            shown += looking.shown(step, len(ids))
                        else:
                            shown.append(looking.step(step))
                            so_far.append(step.token)
                    else:
                        yield {
                            strip: token_strip(shown),
                            prose: looking.prose(so_far, len(ids)),
                            message: message_view("Writing …"),
                        }
            except Exception as error:
                yield refused(error)
            finally:
                looking.stopped.pop(visitor, None)

        def on_read(text: str, on: list[str], at: int, which: str, *values: Any) -> dict[Any, Any]:
            try:
                wanted = _generation(*values)
                ids = looking.ids(text, 0)
                return finished(looking.read(ids, wanted), len(ids) - 1, on, at, which, f"Read {_tokens(len(ids))}.")
            except Exception as error:
                return refused(error)

        def on_stop(request: gr.Request) -> None:
            if stopped := looking.stopped.get(str(request.session_hash)):
                stopped.set()

        def on_pick(event: gr.EventData, about: Reading | None, at: int, which: str) -> dict[Any, Any]:
            position = int(event.index)
            return {selected: position, **inside(about, position, at, which)}

        def on_switch(
            about: Reading | None, position: int, on: list[str], at: int, which: str
        ) -> Iterator[dict[Any, Any]]:
            if about is None:
                return
            try:
                about = looking.switch(about, tuple(name for name in NAMES if name not in on))
                yield {
                    reading: about,
                    strip: looking.strip(about, position),
                    probability: comparison_view(about.whole, about.without, about.off),
                    **inside(about, position, at, which),
                }
                yield below(about, looking.continuation(about) if about.off else None)
            except Exception as error:
                yield refused(error)

        everything = [reading, selected, strip, message, prose, stop, probability, continuation, *panels]
        looks = [on, layer, kind]
        gr.on([generate.click, prompt.submit], on_generate, [prompt, *looks, *fields], everything, **one_at_a_time)
        read.click(on_read, [prompt, *looks, *fields], everything, **one_at_a_time)
        stop.click(on_stop, queue=False, **quiet)
        strip.pick(on_pick, [reading, layer, kind], [selected, *panels], **quiet)
        for control in (layer, kind):
            control.change(inside, [reading, selected, layer, kind], panels, trigger_mode="always_last", **quiet)
        on.change(on_switch, [reading, selected, *looks], everything, trigger_mode="always_last", **one_at_a_time)
        all_on.click(lambda: NAMES, None, on, **quiet)
    return page


def look() -> dict[str, Any]:
    """How the page looks, for `launch`: fonts of the system, and colours that follow its light or dark mode."""
    return {
        "theme": gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO, radius_size="md"),
        "css_paths": Path(__file__).with_name("styles.css"),
        "js": _PAGE_SCRIPT,
        "footer_links": ["settings"],
    }


def serve(folder: str | Path, port: int, open_browser: bool) -> None:
    """Show the page of a trained model at this machine's own address until Ctrl-C.

    Args:
        folder: of a run, or of a model in Hugging Face layout.
        port: 0 for any that is free; one that is taken gives way to the next free one.

    Raises:
        InputError: there is no MU model in the folder, or no port is free.
    """
    model, tokenizer = load_trained(folder, default_device())
    page = build(model, tokenizer, _name(folder))
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it is up; that is not for a proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    free = _free_port(port)
    if port not in (0, free):
        print(f"Port {port} is taken, so this is port {free}.")
    try:
        page.launch(
            server_name=HOST,
            server_port=free,
            share=False,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size=0,
            app_kwargs={"middleware": [_ONLY_THIS_MACHINE]},
            **look(),
        )
        print(f"The playground is at http://{HOST}:{free} and ends with Ctrl-C.", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)


def _name(folder: str | Path) -> str:
    """What a folder is called on the page: its own name, for `best/` with that of its run, and never where it lies."""
    whole = Path(folder).resolve()
    return "/".join(whole.parts[1:][-2:] if whole.name == BEST_FOLDER else whole.parts[1:][-1:]) or "the root folder"


def _sentence(error: Exception) -> str:
    """What a visitor is told; what is no mistake of theirs is told in full in the terminal."""
    if isinstance(error, InputError):
        return str(error)
    traceback.print_exception(error)
    return f"the model failed: {type(error).__name__}: {' '.join(str(error).split())[:300] or 'no more is known'}"


def _free_port(port: int) -> int:
    for candidate in range(port, port + PORTS_TRIED) if port else [0]:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((HOST, candidate))
            except (OSError, OverflowError):
                continue
            return int(tried.getsockname()[1])
    raise InputError(
        f"--port is {port}, but it and the {PORTS_TRIED - 1} after it are taken; give another, or 0 for any"
    )


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _short(meaning: str) -> str:
    """The first words of a meaning, with places where a narrow screen may break them."""
    short = meaning.partition(":")[0].partition(",")[0]
    for word in _SYLLABLES:
        short = short.replace(word.replace("-", ""), word.replace("-", "\N{SOFT HYPHEN}"))
    return short
