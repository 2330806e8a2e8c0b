"""What a visitor changes in the model, in words and in the model."""

from pathlib import Path

import pytest
import torch
from playground_model import INSPECTION

from mu_sota.inspection.ablation import blocks_off
from mu_sota.inspection.steering import recorded_directions, steered
from mu_sota.inspection.tracing import trace
from mu_sota.model.errors import InputError
from mu_sota.playground.change import Change, chosen
from mu_sota.playground.reading_views import NAMES
from mu_sota.saved.load_save import load_trained

STEERING = INSPECTION["steering"]


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (Change(), ""),
        (Change(("C2", "G")), "without C2, G"),
        (Change((), {"E": 2.0}), "with E +2"),
        (Change(("C2",), {"E": 2.0, "A": -1.5}), "without C2, with E +2, A −1.5"),
        (Change(("I", "S", "K", "R1", "T"), {"A": 0.5}), "without 5 blocks, with A +0.5"),
        (Change(tuple(NAMES)), "without any block"),
    ],
)
def test_a_change_has_a_short_title(change: Change, title: str) -> None:
    assert change.title == title
    assert bool(change) == bool(title)


def test_a_change_is_what_switches_and_sliders_stand_for() -> None:
    assert not chosen(NAMES, {"E": 0.0, "A": 0})
    assert chosen(NAMES, {"E": 0.0, "A": -1.0}) == Change((), {"A": -1.0})
    on = [name for name in NAMES if name not in ("A", "I")]
    assert chosen(on[::-1], {"E": 2.0, "A": 3.0}) == Change(("I", "A"), {"E": 2.0}), "a block that is off stays off"


def test_the_model_is_moved_and_without_blocks_at_once(small_run: Path) -> None:
    model, _ = load_trained(small_run)
    ids = [5, 9, 40, 7]
    plain = trace(model, ids).nll
    with Change(("I",), {"E": 2.0}).applied(model, STEERING):
        both = trace(model, ids).nll
    with (
        steered(model, STEERING["place"], recorded_directions(STEERING), {"E": 2.0}),
        blocks_off(model, ["I"]),
    ):
        assert torch.equal(trace(model, ids).nll, both)
    with Change(("I",)).applied(model, STEERING):
        assert not torch.equal(trace(model, ids).nll, both)
    assert torch.equal(trace(model, ids).nll, plain), "afterwards all is as it was"


def test_a_block_without_a_direction_is_not_moved(small_run: Path) -> None:
    model, _ = load_trained(small_run)
    with (
        pytest.raises(InputError, match="no direction to steer block 'K'"),
        Change((), {"K": 1.0}).applied(model, STEERING),
    ):
        pass
