"""Hashed pairs of tokens: of the past alone, evenly spread, with a cache as without."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import NEW_FORM, lively_model
from reference.model import hash_of_pair
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mu_sota.causality import check
from mu_sota.model import modeling
from mu_sota.model.pairs import pair_rows, previous_tokens

IDS = st.integers(0, 2**20 - 1)


@given(previous=st.one_of(st.just(-1), IDS), token=IDS, rows=st.integers(1, 10**6))
def test_a_row_is_the_same_whoever_computes_it(previous: int, token: int, rows: int) -> None:
    """In whole numbers of Python, which do not overflow; a saved model depends on it for ever."""
    found = int(pair_rows(torch.tensor([[previous]]), torch.tensor([[token]]), rows))
    assert found == hash_of_pair(previous, token, rows)
    assert 0 <= found < rows


def test_rows_are_used_evenly() -> None:
    """Of 250,000 pairs of neighbouring ids in 16,384 rows, the fullest row has little more than its share of 15."""
    ids = torch.arange(500)
    rows = pair_rows(ids[:, None].expand(500, 500), ids[None].expand(500, 500), 16_384)
    counts = Counter(rows.flatten().tolist())
    assert len(counts) > 16_300
    assert max(counts.values()) < 50


@given(data=st.data(), length=st.integers(1, 9), pieces=st.integers(1, 4), as_4d=st.booleans())
def test_the_token_before_is_found_through_padding_and_cache(
    data: st.DataObject, length: int, pieces: int, as_4d: bool
) -> None:
    """Whatever is padding, and however a text is cut into pieces that are read one after the other."""
    ids = torch.tensor(data.draw(st.lists(st.lists(IDS, min_size=length, max_size=length), min_size=2, max_size=2)))
    real = data.draw(st.lists(st.booleans(), min_size=2 * length, max_size=2 * length))
    mask = torch.tensor(real).view(2, length).long()
    expected = [[int(ids[row, at - 1]) if at and mask[row, at - 1] else -1 for at in range(length)] for row in range(2)]
    cache = DynamicCache()
    cache.layers = [DynamicLayer()]
    found, past = [], 0
    for piece in ids.tensor_split(pieces, dim=1):
        new = piece.shape[1]
        if not new:
            continue
        seen: Tensor = mask[:, : past + new]
        if as_4d:  # as `generate` makes it for a cache of a fixed size
            causal = torch.ones(past + new, past + new, dtype=torch.bool).tril()[past:]
            seen = causal[None, None] & seen.bool()[:, None, None]
        found.append(previous_tokens(piece, seen, cache, 0, past))
        past += new
    assert torch.cat(found, dim=1).tolist() == expected


def test_the_new_form_does_not_leak() -> None:
    """By every check, those with a cache and with padding included."""
    report = check(lively_model(**NEW_FORM, num_hidden_layers=1).float())
    assert report.clean, report.summary()


def test_a_pair_with_the_next_token_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one mistake that such a table invites."""

    def next_tokens(ids: Tensor, *_: object) -> Tensor:
        return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1)

    monkeypatch.setattr(modeling, "previous_tokens", next_tokens)
    report = check(lively_model(**NEW_FORM, num_hidden_layers=1).float())
    assert not report.clean
    assert "future" in report.summary()
