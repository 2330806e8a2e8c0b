"""The cards of the page, one below the other: prompt, tokens, inside a token, with some blocks changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from mu_sota.inspection.steering import PROPERTIES
from mu_sota.model.blocks import BLOCKS
from mu_sota.settings.sampling import Generation

from .html_views import card_title, carried_view, message_view, minus, moves_view, placeholder, token_strip

NONE_CHOSEN = "No token is chosen yet."
NO_PROBABILITY = "The text's probability appears here."
_HINT = "Generate (Ctrl+Enter) continues the prompt. Read shows the prompt as the model sees it."
_SYLLABLES = ("coher-ence", "docu-ment", "know-ledge", "rela-tions", "seman-tic", "struc-ture", "transfor-mation")


class PromptCard(NamedTuple):
    """What to read or continue, and how."""

    prompt: gr.Textbox
    generate: gr.Button
    read: gr.Button
    stop: gr.Button
    sampling: list[Any]  # a field for each setting of `Generation`, in its order
    message: gr.HTML
    prose: gr.HTML


class InsideCard(NamedTuple):
    """One token in one layer."""

    layer: gr.Slider
    attention_kind: gr.Dropdown
    heading: gr.HTML
    state: gr.HTML
    sensitivity: gr.HTML
    attention: gr.HTML


class ChangedCard(NamedTuple):
    """Switches and sliders of the blocks, and what the model does as they change it."""

    on: gr.CheckboxGroup
    strengths: dict[str, gr.Slider]  # by the name of the block that the slider moves
    as_trained: gr.Button
    probability: gr.HTML
    continuation: gr.HTML


def file_beside(name: str) -> Path:
    """A script or style sheet of the page."""
    return Path(__file__).with_name(name)


def prompt_card(positions: int, settings: Generation) -> PromptCard:
    """The prompt, its buttons, and fields for the sampling settings, which start as `settings`."""
    with gr.Column(elem_id="mu-ask", elem_classes="mu-card"):
        prompt = gr.Textbox(
            "The file object",
            label="Prompt",
            info=f"Prompt and continuation have at most {positions} tokens.",
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
            sampling = _sampling_fields(positions, settings)
        message = gr.HTML(message_view(_HINT), elem_id="mu-message")
        prose = gr.HTML(elem_id="mu-prose")
    return PromptCard(prompt, generate, read, stop, sampling, message, prose)


def _sampling_fields(positions: int, settings: Generation) -> list[Any]:
    def field(key: str, low: float, high: float, step: float, label: str, info: str) -> gr.Slider:
        value = getattr(settings, key)
        return _slider(min(low, value), max(high, value), value, step=step, label=label, info=info, min_width=260)

    settings = settings.changed("max_new_tokens", min(settings.max_new_tokens, max(positions // 2, 1)))
    return [
        field("temperature", 0, 2, 0.05, "Temperature", "0: always the likeliest"),
        field("top_k", 0, 200, 1, "Top k", "0: all tokens"),
        field("top_p", 0.05, 1, 0.05, "Top p", "share of probability"),
        field("repetition_penalty", 1, 2, 0.05, "Repetition penalty", "1: none"),
        field("max_new_tokens", 1, max(positions - 1, 2), 1, "New tokens", "at most"),
        gr.Number(settings.seed, precision=0, label="Seed", info="same seed, same text", min_width=260),
    ]


def tokens_card() -> gr.HTML:
    """The strip of tokens; its event `pick` brings the index of the chosen one."""
    with gr.Column(elem_id="mu-text", elem_classes="mu-card"):
        gr.HTML(
            card_title(
                "Tokens",
                "Below each token: its probability, and the likeliest tokens at its position. Click one, or press "
                "Enter on it, to look inside.",
            )
        )
        return gr.HTML(token_strip([]), js_on_load=file_beside("token_strip.js").read_text(), elem_id="mu-strip")


def inside_card(layers: int, heads: int) -> InsideCard:
    """State, sensitivities and attention of the chosen token in the chosen layer."""
    with gr.Column(elem_id="mu-inside", elem_classes="mu-card"):
        gr.HTML(card_title("Inside a token"))
        heading = gr.HTML(placeholder(NONE_CHOSEN), elem_id="mu-which")
        with gr.Row():
            layer = _slider(
                *(0, layers, layers),
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
        panels = []
        with gr.Row(elem_id="mu-panels"):
            for name in ("mu-state", "mu-sensitivity", "mu-attention"):
                with gr.Column(min_width=300):
                    panels.append(gr.HTML(elem_id=name))
    return InsideCard(layer, kind, heading, *panels)


def carried_card(inspection: dict[str, Any]) -> None:
    """What each block is named for, and how well it does that, by measurement.

    Args:
        inspection: the record of `mu-sota inspect`, or nothing.
    """
    with gr.Column(elem_id="mu-carried", elem_classes="mu-card"):
        gr.HTML(carried_view(inspection))


def changed_card(steering: Mapping[str, Any]) -> ChangedCard:
    """A switch for each block, and a slider for each that can be moved, beside probability and continuations.

    Args:
        steering: of the record of `mu-sota inspect`.
    """
    with gr.Column(elem_id="mu-changed", elem_classes="mu-card"):
        gr.HTML(
            card_title(
                "With some blocks changed",
                "A block that is off reads as 0 in every layer. The text above is read again, and its prompt "
                "continued with the same seed.",
            )
        )
        with gr.Row():
            with gr.Column(min_width=300, scale=5):
                on = gr.CheckboxGroup(
                    [(f"{block.name}\n{_short(block.meaning)}", block.name) for block in BLOCKS],
                    value=[block.name for block in BLOCKS],
                    label="Blocks that are on",
                    elem_id="mu-switches",
                )
                gr.HTML(moves_view(steering))
                strengths = {row["block"]: _move_field(row) for row in steering["directions"]}
                as_trained = gr.Button("As trained", size="sm", elem_id="mu-as-trained")
            with gr.Column(min_width=300, scale=6, elem_id="mu-compared"):
                probability = gr.HTML(placeholder(NO_PROBABILITY), elem_id="mu-probability")
                continuation = gr.HTML(elem_id="mu-continuations")
    return ChangedCard(on, strengths, as_trained, probability, continuation)


def _move_field(row: Mapping[str, Any]) -> gr.Slider:
    """A slider for one direction of the record, which says what moved most when it was measured."""
    most = max(row["moved"], key=lambda name: abs(row["moved"][name]))
    moved, loss = minus(f"{row['moved'][most]:+.1f}"), minus(f"{row['loss_rise']:+.2f}")
    return _slider(
        *(-4, 4, 0),
        step=0.5,
        label=f"{row['block']}: {row['away']} → {row['towards']}",
        info=f"{PROPERTIES[most]}: {moved} sd; loss: {loss}",
        elem_id=f"mu-move-{row['block']}",
    )


def _slider(*arguments: Any, **more: Any) -> gr.Slider:
    """A slider that keeps its first value while its number box is empty."""
    slider = gr.Slider(*arguments, **more)
    number = slider.preprocess
    # No subclass: for one, Gradio writes a .pyi file beside this module.
    slider.preprocess = lambda payload: number(slider.value if payload is None else payload)  # type: ignore[method-assign]
    return slider


def _short(meaning: str) -> str:
    """The first words of a meaning, with soft hyphens where a narrow screen may break them."""
    short = meaning.partition(":")[0].partition(",")[0]
    for word in _SYLLABLES:
        short = short.replace(word.replace("-", ""), word.replace("-", "\N{SOFT HYPHEN}"))
    return short
