"""Steering: a planted direction moves what is planted and nothing else, in full passes and in cached generation."""

from typing import Any

import numpy as np
import pytest
import torch
from reference import lively_model
from transformers import PreTrainedTokenizerFast

from mu_sota import MuForCausalLM
from mu_sota.data.tokenizer import train_bpe
from mu_sota.inspection.steering import (
    POLES,
    PROPERTIES,
    Direction,
    directions,
    measure_steering,
    measured_properties,
    recorded_directions,
    steered,
)
from mu_sota.inspection.targets import NONE, Target, block_targets
from mu_sota.inspection.tracing import trace
from mu_sota.model.blocks import BLOCKS, split_blocks
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError

NAMES = [block.name for block in BLOCKS]
IDS = [3, 17, 3, 30, 8, 36, 0, 21, 5]


def towards(block: str, size: int = 4) -> list[Direction]:
    return [Direction(block, "one", "other", [1.0, -2.0, 0.5, 3.0][:size])]


@torch.no_grad()
def test_one_block_of_every_token_is_moved_at_one_place() -> None:
    model = lively_model()
    before = trace(model, IDS).states
    with steered(model, 1, towards("E"), {"E": -1.5}):
        after = trace(model, IDS).states
    moved = split_blocks(after - before)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    expected = -1.5 * torch.tensor(towards("E")[0].vector, dtype=moved.dtype).expand(len(IDS), 4)
    torch.testing.assert_close(moved[1, :, NAMES.index("E")], expected)
    others = [number for number, name in enumerate(NAMES) if name != "E"]
    assert not moved[1][:, others].any(), "at this place nothing else moves"
    assert moved[2].abs().max() > 0, "later layers read it"
    assert torch.equal(trace(model, IDS).states, before), "afterwards all is as it was"


def test_no_move_is_no_change() -> None:
    model = lively_model()
    ids = torch.tensor([IDS])
    plain = model(ids).logits
    with steered(model, 1, [], {}):
        assert torch.equal(model(ids).logits, plain)
    with steered(model, 1, towards("E"), {"E": 0.0}):
        torch.testing.assert_close(model(ids).logits, plain)


def test_generation_is_steered_with_a_cache_as_without() -> None:
    model = lively_model()
    ids = torch.tensor([IDS])
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **asked)
    with steered(model, 1, towards("A"), {"A": 4.0}):
        cached = model.generate(ids, **asked)
        uncached = model.generate(ids, **asked, use_cache=False)
    assert cached.tolist() == uncached.tolist()
    assert cached.tolist() != plain.tolist()


def test_a_block_without_a_direction_is_refused() -> None:
    with (
        pytest.raises(InputError, match="no direction to steer block 'P' in; there is for E"),
        steered(lively_model(), 1, towards("E"), {"P": 1.0}),
    ):
        pass


def test_a_direction_is_the_difference_of_means() -> None:
    """Over the words of either kind; a block without words of both has none."""
    blocks = torch.randn(6, 16, 4, generator=torch.Generator().manual_seed(0))
    form = Target("M", "verb form", np.array([0, 2, 1, 3, NONE, 2]), ["past", "modal", "present", "third person"])
    affect = Target("A", "affect", np.array([0, 1, 0, 1, 1, 1]), ["negative", "neutral", "positive"])
    (one,) = directions(blocks, [affect, form])
    assert one[:3] == ("M", "present", "past")
    verbs = blocks[:, NAMES.index("M")]
    torch.testing.assert_close(torch.tensor(one.vector), verbs[0] - verbs[[1, 3, 5]].mean(0))
    assert directions(blocks, []) == []
    assert recorded_directions({"directions": [one._asdict() | {"moved": {}}]}) == [one]


def test_poles_are_classes_of_what_blocks_are_taught() -> None:
    """In a text that has all of them."""
    sentence = (
        "he walks to London and they walk in a good and bad and very long way to some other place and then walked ."
    )
    tokenizer = train_bpe([sentence], 400)
    known = {
        (target.block, target.name): target
        for target in block_targets(np.array(tokenizer(sentence).input_ids), tokenizer)
    }
    for poles in POLES:
        away, towards = poles.numbers(known[poles.block, poles.target])
        assert len(away) >= 1, poles
        assert len(towards) >= 1, poles


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    text = "good bad Paris walked walks. the a good bad Paris walked walks. " * 5
    return train_bpe([text], 330)


def test_properties_of_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = dict(zip(PROPERTIES, measured_properties(tokenizer), strict=True))

    def of(token: str) -> tuple[float, ...]:
        number = tokenizer.convert_tokens_to_ids(token.replace(" ", "\u0120"))
        return tuple(float(rows[name][number]) for name in "PEAM")

    assert of(".") == (1, 0, 0, 0)
    assert of(" Paris") == (0, 1, 0, 0)
    assert of(" good") == (0, 0, 1, 0)
    assert of(" bad") == (0, 0, -1, 0)
    assert of(" walked") == (0, 0, 0, 1)
    assert of(" walks") == (0, 0, 0, -1)
    assert of(" the") == (0, 0, 0, 0)


def test_a_planted_direction_moves_its_property_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    """The output reads block E for capitals, and block X for ends of sentences."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "max_position_embeddings": 16}
    model = MuForCausalLM(MuConfig(**sizes)).eval()
    head = torch.zeros_like(model.lm_head.weight).unflatten(-1, (16, 4))
    capitals, ends = (measured_properties(tokenizer)[row] for row in (1, 0))
    head[:, NAMES.index("E"), 0] = capitals
    head[:, NAMES.index("X"), 0] = ends
    model.lm_head.weight.data = head.flatten(1)
    texts = torch.randint(4, len(tokenizer), (4, 12), generator=torch.Generator().manual_seed(0))
    known = [Direction(name, "", "", [1.0, 0, 0, 0]) for name in ("E", "X", "A")]
    entity, extension, affect = measure_steering(model, tokenizer, texts, 1, known)
    assert entity["moved"]["E"] > 1
    assert extension["moved"]["P"] > 1
    assert abs(affect["moved"]["E"]) < 0.2 * entity["moved"]["E"], "the norm alone carries it over"
    assert entity["moved"]["A"] == pytest.approx(0, abs=0.35)
