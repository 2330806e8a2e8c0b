"""The model behind the page: it streams what it reads afterwards, and answers one question at a time."""

from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from playground_model import INSPECTION

from mu_sota.generation.continuation import continued
from mu_sota.inspection.steering import recorded_directions, steered
from mu_sota.inspection.tracing import Trace
from mu_sota.playground.change import Change
from mu_sota.playground.reading_views import ReadingViews
from mu_sota.playground.session import Reading, Session, Step
from mu_sota.saved.load_save import load_trained
from mu_sota.settings.sampling import Generation


@pytest.fixture
def session(small_run: Path) -> Session:
    return Session(*load_trained(small_run))


def test_streamed_tokens_are_those_of_the_finished_reading(session: Session) -> None:
    generation = Generation.model_validate({"max_new_tokens": 12, "seed": 4})
    ids = session.ids("the state", 12)
    first, *steps = [step for steps in session.write(ids, generation, Event()) for step in steps]
    done = steps.pop()
    assert isinstance(done, Reading)
    assert done.ids == continued(session.model, session.tokenizer, ids, generation, 12, 4)
    assert isinstance(first, Trace)
    views = ReadingViews(session.tokenizer)
    shown = views.shown(first, len(ids)) + [views.step(step) for step in steps if isinstance(step, Step)]
    for streamed, read in zip(shown, views.shown(done.trace, len(ids)), strict=True):
        assert (streamed.text, streamed.written) == (read.text, read.written)
        assert streamed.probability == (read.probability and pytest.approx(read.probability, rel=1e-4))
        assert [text for text, _ in streamed.alternatives] == [text for text, _ in read.alternatives]
        assert [p for _, p in streamed.alternatives] == pytest.approx([p for _, p in read.alternatives], rel=1e-4)


def test_a_page_closed_while_the_model_writes_does_not_block_the_next_question(session: Session) -> None:
    generation = Generation.model_validate({"max_new_tokens": 30})
    writing = session.write(session.ids("the", 30), generation, Event())
    next(writing)
    del writing
    reading = session.read(session.ids("the state", 30), generation)
    assert not session.model._forward_hooks
    off = session.switch(reading, Change(("I", "K")))
    assert off.nll_changed is not None
    assert session.continuation(off) != reading.continuation == session.continuation(reading)


def test_a_steered_reading_is_that_of_the_steered_model(small_run: Path) -> None:
    session = Session(*load_trained(small_run), INSPECTION["steering"])
    generation = Generation(max_new_tokens=12, temperature=0)
    reading = session.read(session.ids("the state", 12), generation)
    moved = session.switch(reading, Change((), {"E": 2.0}))
    new = session.continuation(moved)
    steering = INSPECTION["steering"]
    with steered(session.model, steering["place"], recorded_directions(steering), {"E": 2.0}):
        alike = session.read(reading.ids, generation)
    assert moved.nll_changed is not None
    assert torch.equal(moved.nll_changed, alike.nll_as_trained)
    assert new == alike.continuation != reading.continuation
    back = session.switch(moved, Change())
    assert back.nll_changed is None
    assert torch.equal(back.trace.nll, reading.nll_as_trained)


def test_one_question_waits_until_another_is_answered(session: Session) -> None:
    """A block that one visitor switches off must not be off in the text of another."""
    reading = session.read(session.ids("the state", 1), Generation(max_new_tokens=1))
    without = session.switch(reading, Change(("I",)))
    for question in (
        lambda: session.switch(reading, Change(("I",))),
        lambda: session.continuation(without),
        lambda: session.read(reading.ids, reading.generation),
    ):
        asked = Thread(target=question, daemon=True)
        with session.lock:
            asked.start()
            asked.join(0.3)
            assert asked.is_alive()
            assert not session.model.model.layers[0]._forward_pre_hooks
        asked.join(20)
        assert not asked.is_alive()
