"""The growing cache layer against the one of transformers."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from reference import lively_model
from transformers.cache_utils import DynamicCache, DynamicLayer

from mu_sota.model.cache import GrowingLayer


def test_a_growing_slot_is_as_that_of_transformers() -> None:
    """Through everything that generation does to a cache, also where it puts other tensors in the place of its own."""
    generator = torch.Generator().manual_seed(0)
    ours: Any = GrowingLayer()
    theirs: Any = DynamicLayer()

    def both(change: Callable[[Any], None]) -> None:
        for slot in (ours, theirs):
            change(slot)
        if theirs.is_initialized:
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()

    def add(tokens: int, batch: int) -> Callable[[Any], None]:
        new = torch.randn(2, batch, 3, tokens, 5, generator=generator)
        return lambda slot: slot.update(*new.unbind())

    both(add(7, 2))
    for _ in range(130):  # more than there is room for at first
        both(add(1, 2))
    both(lambda slot: slot.crop(-4))
    both(add(1, 2))
    both(lambda slot: slot.reorder_cache(torch.tensor([1, 1])))
    both(add(2, 2))
    both(lambda slot: slot.batch_repeat_interleave(2))
    both(add(1, 4))
    both(lambda slot: slot.batch_select_indices(torch.tensor([3, 0])))
    both(add(1, 2))
    copy = deepcopy(ours)
    both(add(3, 2))
    assert copy.get_seq_length() == ours.get_seq_length() - 3
    copy.update(*torch.zeros(2, 2, 3, 1, 5).unbind())
    assert torch.equal(ours.keys, theirs.keys), "a copy of the cache writes into room of its own"
    both(add(1, 2))
    for slot in (ours, theirs):
        slot.keys, slot.values = slot.keys[:1], slot.values[:1]
    both(add(1, 1))
    both(lambda slot: slot.reset())
    both(add(2, 1))


def test_a_branch_of_a_cache_does_not_write_into_the_other() -> None:
    """Two continuations of one prompt, each from a copy of its cache, as prompts are reused."""
    model = lively_model().float()
    ids = torch.randint(model.config.vocab_size, (1, 8))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        one, two = deepcopy(cache), deepcopy(cache)
        first = [model(torch.tensor([[token]]), past_key_values=one).logits for token in (1, 2, 3)]
        model(torch.tensor([[5]]), past_key_values=two)
        again = [model(torch.tensor([[token]]), past_key_values=cache).logits for token in (1, 2, 3)]
    for left, right in zip(first, again, strict=True):
        assert torch.equal(left, right)


class OwnSlot(DynamicLayer):
    """A slot as others write it, to quantise or to offload."""


def test_slots_of_another_make_are_filled_as_they_ask() -> None:
    """The kernel for a step knows the room of our own slots alone."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 9))
    with torch.no_grad():
        cache = DynamicCache()
        cache.layers = [OwnSlot() for _ in range(2 * model.config.num_hidden_layers)]
        model(ids[:, :-1], past_key_values=cache)
        made = model(ids[:, -1:], past_key_values=cache).logits
        torch.testing.assert_close(made, model(ids).logits[:, -1:], rtol=1e-4, atol=1e-4)
    assert {cache.get_seq_length(number) for number in range(len(cache.layers))} == {9}
