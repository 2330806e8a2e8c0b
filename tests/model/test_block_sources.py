"""What four blocks receive by construction, by the slow reference's own way of counting."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import lively_model
from torch import Tensor

from mu_sota.causality import check
from mu_sota.model.blocks import BLOCKS, split_blocks
from mu_sota.model.lookups import NO_TOKEN
from mu_sota.model.sources import BlockSources

NAMES = [block.name for block in BLOCKS]


@given(st.lists(st.integers(-1, 6), min_size=1, max_size=12), st.integers(0, 11))
def test_blocks_receive_what_they_are_named_for(known: list[int], first: int) -> None:
    """Of a text with padding anywhere, all at once or its last tokens alone; the other blocks stay as they are."""
    made = BlockSources(block_size=4, positions=12, vocab_size=7).double()
    first = min(first, len(known) - 1)
    at = torch.arange(first, len(known))
    state = torch.randn(1, len(at), 64, dtype=torch.float64)
    found = split_blocks(made(state, torch.tensor([known]), at, at[None]))[0]
    tables: dict[str, Any] = {name: table.weight for name, table in made.tables.items()}
    for place, blocks, before in zip(at.tolist(), found, split_blocks(state)[0], strict=True):
        expected = before.clone()
        expected[NAMES.index("P")] += tables["P"][place]
        if place and known[place - 1] != NO_TOKEN:
            expected[NAMES.index("C1")] += tables["C1"][known[place - 1]]
        ages = [(token, place - other) for other, token in enumerate(known[: place + 1]) if token != NO_TOKEN]
        for name, decay in (("C2", 0.99), ("G", 0.98)):
            rows = [decay**age * tables[name][token] for token, age in ages]
            scale = max(1.0, sum(decay**age for _, age in ages)) ** 0.5
            expected[NAMES.index(name)] = sum(rows, torch.zeros(4)) / scale
        torch.testing.assert_close(blocks, expected, rtol=1e-6, atol=1e-6)


def test_sources_do_not_leak() -> None:
    report = check(lively_model(block_inputs="by_name", num_hidden_layers=1).float())
    assert report.clean, report.summary()


def test_a_source_that_sees_the_next_token_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BlockSources.forward

    def too_late(self: BlockSources, state: Tensor, known: Tensor, at: Tensor, position_ids: Tensor) -> Any:
        return right(self, state, known, (at + 1).clamp(max=known.shape[1] - 1), position_ids)

    monkeypatch.setattr(BlockSources, "forward", too_late)
    report = check(lively_model(block_inputs="by_name", num_hidden_layers=1).float())
    assert not report.clean
    assert "future" in report.summary()


def test_a_larger_vocabulary_has_rows_in_every_table_of_tokens() -> None:
    model = lively_model(block_inputs="by_name").float()
    before = model(torch.tensor([[1, 2, 3]])).logits
    model.resize_token_embeddings(50)
    assert {name: len(table.weight) for name, table in model.model.sources.tables.items()} == {
        "P": 24,
        "C1": 50,
        "C2": 50,
        "G": 50,
    }
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]])).logits[..., :37], before)
    assert model(torch.tensor([[1, 49]])).logits.shape[-1] == 50
