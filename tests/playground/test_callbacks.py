"""The page's functions, called as Gradio calls them: which components they change, also when the model fails."""

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from playground_model import INSPECTION, built

from mu_sota import MuForCausalLM
from mu_sota.model.errors import InputError
from mu_sota.playground import session
from mu_sota.playground.reading_views import NAMES
from mu_sota.saved.load_save import load_trained
from mu_sota.settings.sampling import Generation


class Asked:
    """The page's functions, called as Gradio calls them, with the components they change."""

    def __init__(self, model: MuForCausalLM, tokenizer: Any) -> None:
        self.page = built(model, tokenizer, INSPECTION)
        self.functions: dict[str, Any] = {each.name: each.fn for each in self.page.fns.values()}
        self.strengths = [0.0, 0.0]
        self.stopped = self.functions["on_stop"].__self__.stopped

    def values(self) -> list[Any]:
        """Of the fields: blocks that are on, layer, attention, how to sample, and the strengths of two moves."""
        return [NAMES, 1, "mean", *Generation(max_new_tokens=3).model_dump().values(), *self.strengths]

    def generate(self) -> Generator[dict[str, Any]]:
        visitor = SimpleNamespace(session_hash="someone")
        for update in self.functions["on_generate"](visitor, "the state", *self.values()):
            yield self.by_id(update)

    def read(self) -> dict[str, Any]:
        return self.by_id(self.functions["on_read"]("the state", *self.values()))

    @staticmethod
    def by_id(update: dict[Any, Any]) -> dict[str, Any]:
        return {component.elem_id: value for component, value in update.items()}


def test_a_finished_generation_can_no_longer_be_stopped(small_run: Path) -> None:
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


def test_a_text_is_read_and_written_with_the_moves_of_the_sliders(small_run: Path) -> None:
    asked = Asked(*load_trained(small_run))
    asked.strengths = [2.0, -1.5]
    for done in (asked.read(), list(asked.generate())[-1]):
        assert "All figures are with E +2, A −1.5." in done["mu-strip"]
        assert "<h4>With E +2, A −1.5" in done["mu-continuations"]


def test_an_error_of_the_model_is_shown_on_the_page(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(*load_trained(small_run))
    for error, sentence in (
        (InputError("no <number> & nothing"), "no &lt;number&gt; &amp; nothing"),
        (RuntimeError("probability tensor"), "the model failed: RuntimeError: probability tensor"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(session, "continued", fail)
        for last in (list(asked.generate())[-1], asked.read()):
            assert sentence in last["mu-message"]
            assert 'role="alert"' in last["mu-message"]
            assert not last["mu-stop"].interactive
        assert not asked.stopped
        assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)


def test_a_model_whose_predictions_are_not_numbers_gets_a_sentence_on_the_page(small_run: Path) -> None:
    model, tokenizer = load_trained(small_run)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    asked = Asked(model, tokenizer)
    last = list(asked.generate())[-1]
    assert 'role="alert"' in last["mu-message"]
    assert not last["mu-stop"].interactive
