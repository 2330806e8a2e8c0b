"""A reading as HTML: the chosen attention is shown, and a token that is markup is text."""

import re
from pathlib import Path
from typing import Any

import torch
from playground_model import Tags

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.data.tokenizer import train_words
from mu_sota.playground.html_views import percent
from mu_sota.playground.reading_views import NAMES, ReadingViews
from mu_sota.playground.session import Session
from mu_sota.saved.load_save import load_trained
from mu_sota.settings.sampling import Generation


def test_the_chosen_attention_is_shown(small_run: Path) -> None:
    session = Session(*load_trained(small_run))
    views = ReadingViews(session.tokenizer)
    reading = session.read(session.ids("the state of a token", 1), Generation(max_new_tokens=1))
    position = 3
    rows = reading.trace.attention(position, 2)
    kinds: dict[str, Any] = {"mean": sum(rows.cross) / len(rows.cross), "K": rows.block[NAMES.index("K")]}
    kinds |= {f"head {number}": row for number, row in enumerate(rows.cross, start=1)}
    shown = {}
    for kind, weights in kinds.items():
        html = views.inspected(reading, position, 2, kind)[3]
        shown[kind] = re.findall(r'<span style="[^"]*" title="(.*?)">', html)
        assert shown[kind] == [percent(float(weight)) for weight in weights], kind
    assert len({tuple(each) for each in shown.values()}) == len(shown), "a mix-up would show"


def test_a_token_that_is_markup_is_shown_as_text() -> None:
    words = train_words(["<b>bold</b> text\n"])
    torch.manual_seed(0)
    model = MuForCausalLM(MuConfig(vocab_size=len(words), num_hidden_layers=1, max_position_embeddings=9)).eval()
    session = Session(model, words)
    reading = session.read(session.ids("<b>bold</b>", 1), Generation(max_new_tokens=1))
    heading = ReadingViews(words).inspected(reading, 0, 1, "mean")[0]
    assert "&lt;b&gt;bold&lt;/b&gt;</b>" in heading
    assert Tags(heading).elements == ["p", "b"]
