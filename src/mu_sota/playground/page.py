"""A local page to look at a trained model: the text it writes, its tokens' blocks, and what some blocks change."""

from pathlib import Path
from typing import Any

import gradio as gr
from transformers import PreTrainedTokenizerFast

from mu_sota.common.environment import default_device
from mu_sota.generation.continuation import sampling_of
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.load_save import load_trained
from mu_sota.saved.run_record import BEST_FOLDER, inspection_of

from .callbacks import Callbacks, Parts
from .cards import carried_card, changed_card, file_beside, inside_card, prompt_card, tokens_card
from .change import NO_STEERING
from .html_views import header_view
from .reading_views import NAMES
from .server import serve_until_ctrl_c
from .session import Session

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def serve(folder: str | Path, port: int, open_browser: bool) -> None:
    """Show the page of a trained model at this machine's own address until Ctrl-C.

    Args:
        folder: of a run, or of a model in Hugging Face layout.
        port: 0 for any free one; if it is taken, the next free one is used.

    Raises:
        InputError: there is no MU model in the folder, or no port is free.
    """
    model, tokenizer = load_trained(folder, default_device())
    page = build(model, tokenizer, _title(folder), inspection_of(Path(folder)))
    serve_until_ctrl_c(page, port, open_browser, **look())


def build(
    model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, title: str, inspection: dict[str, Any]
) -> gr.Blocks:
    """The page of a model in eval mode; `launch` it with `look()`.

    Args:
        inspection: what `mu-sota inspect` recorded of the model, or nothing.
    """
    steering = inspection.get("steering", NO_STEERING)
    session, config, layers = Session(model, tokenizer, steering), model.config, model.config.num_hidden_layers
    facts = (
        f"{layers} layers · 16 blocks in {config.matrix_size} × {config.matrix_size} · "
        f"{config.vocab_size:,} tokens · {model.num_parameters():,} parameters"
    )
    with gr.Blocks(title=f"mu-sota playground: {title}", analytics_enabled=False, fill_width=True) as page:
        reading, selected = gr.State(None), gr.State(0)
        gr.HTML(header_view(title, facts), elem_id="mu-header")
        ask = prompt_card(session.positions, sampling_of(model))
        strip, inside = tokens_card(), inside_card(layers, config.num_attention_heads)
        carried_card(inspection)
        parts = Parts(reading, selected, ask, strip, inside, changed_card(steering))
        _wire(parts, Callbacks(session, parts))
    return page


def _wire(parts: Parts, callbacks: Callbacks) -> None:
    """Which event calls which callback, with which inputs, and what it may change."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    one_at_a_time: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": 1}
    reading, selected, ask, strip, inside, changed = parts
    strengths = list(changed.strengths.values())
    looks = [changed.on, inside.layer, inside.attention_kind]
    shown = [strip, ask.message, ask.prose, ask.stop, changed.probability, changed.continuation, *callbacks.panels]
    everything = [reading, selected, *shown]

    asked = [ask.prompt, *looks, *ask.sampling, *strengths]
    gr.on([ask.generate.click, ask.prompt.submit], callbacks.on_generate, asked, everything, **one_at_a_time)
    ask.read.click(callbacks.on_read, asked, everything, **one_at_a_time)
    ask.stop.click(callbacks.on_stop, queue=False, **quiet)

    chosen = [inside.layer, inside.attention_kind]
    strip.pick(callbacks.on_pick, [reading, *chosen], [selected, *callbacks.panels], **quiet)
    last: dict[str, Any] = {"trigger_mode": "always_last"}
    changes = [inside.layer.change, inside.attention_kind.change]
    gr.on(changes, callbacks.on_look, [reading, selected, *chosen], callbacks.panels, **last, **quiet)
    switched = [changed.on.change, *(strength.change for strength in strengths)]
    gr.on(switched, callbacks.on_switch, [reading, selected, *looks, *strengths], everything, **last, **one_at_a_time)
    unchanged: dict[Any, Any] = {changed.on: NAMES, **dict.fromkeys(strengths, 0)}
    changed.as_trained.click(lambda: unchanged, None, list(unchanged), **quiet)


def look() -> dict[str, Any]:
    """The looks of the page, for `launch`: fonts of the system, and colours that follow its light or dark mode."""
    return {
        "theme": gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO, radius_size="md"),
        "css_paths": file_beside("styles.css"),
        "js": file_beside("page.js").read_text(),
        "footer_links": ["settings"],
    }


def _title(folder: str | Path) -> str:
    """The folder's own name, for `best/` with that of its run, but not the path to it."""
    path = Path(folder).resolve()
    return "/".join(path.parts[1:][-2:] if path.name == BEST_FOLDER else path.parts[1:][-1:]) or "the root folder"
