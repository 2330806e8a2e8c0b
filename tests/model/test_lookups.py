"""Tables of pairs and of what followed: of the past alone, through padding and cache, as in lists of Python."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import NEW_FORM, lively_model
from reference.model import hash_of_pair, token_after_last_match
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mu_sota.causality import check
from mu_sota.model import lookups
from mu_sota.model.lookups import LookupTables, followers, known_tokens, pair_rows, tokens_before

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


def known_before(text: list[int], real: list[int], at: int) -> list[int]:
    """The tokens up to a position that follow the last padding before it."""
    known: list[int] = []
    for token, there in zip(text[: at + 1], real[: at + 1], strict=True):
        known = [*known, token] if there else []
    return known


@given(data=st.data(), length=st.integers(1, 12), pieces=st.integers(1, 4), as_4d=st.booleans())
def test_the_past_is_found_through_padding_and_cache(
    data: st.DataObject, length: int, pieces: int, as_4d: bool
) -> None:
    """However much padding comes first, and however a text is cut into pieces that are read one after the other."""
    few = st.lists(st.integers(0, 3), min_size=length, max_size=length)  # so that tokens recur
    texts = data.draw(st.lists(few, min_size=2, max_size=2))
    reals = [
        [0] * padding + [1] * (length - padding) for padding in data.draw(st.tuples(*[st.integers(0, length)] * 2))
    ]
    ids, mask = torch.tensor(texts), torch.tensor(reals)
    cache = DynamicCache()
    cache.layers = [DynamicLayer()]
    before: list[Tensor] = []
    found: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    past = 0
    for piece in ids.tensor_split(pieces, dim=1):
        new = piece.shape[1]
        if not new:
            continue
        seen: Tensor = mask[:, : past + new]
        if as_4d:  # as `generate` makes it for a cache of a fixed size
            causal = torch.ones(past + new, past + new, dtype=torch.bool).tril()[past:]
            seen = causal[None, None] & seen.bool()[:, None, None]
        known, positions = known_tokens(piece, seen, cache, 0), past + torch.arange(new)
        before.append(tokens_before(known, positions, 1))
        for size, parts in found.items():
            parts.append(followers(known, positions, size))
        past += new
    for row, (text, real) in enumerate(zip(texts, reals, strict=True)):
        for at in range(length):
            known_here = known_before(text, real, at)
            if not known_here:
                continue  # a padding position; what stands there counts for nothing
            assert torch.cat(before, 1)[row, at] == ([-1, *known_here][-2])
            for size, parts in found.items():
                follower = token_after_last_match(known_here, size)
                assert torch.cat(parts, 1)[row, at] == (-1 if follower is None else follower)


def test_the_new_form_does_not_leak() -> None:
    """By every check, those with a cache and with padding included."""
    report = check(lively_model(**NEW_FORM, num_hidden_layers=1).float())
    assert report.clean, report.summary()


@pytest.mark.parametrize("mistake", ["tokens_before", "followers"])
def test_a_row_of_the_next_token_is_a_leak(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """The one mistake that such tables invite."""
    right = getattr(lookups, mistake)

    def one_too_late(known: Tensor, positions: Tensor, of: int) -> Tensor:
        return right(known, (positions + 1).clamp(max=known.shape[1] - 1), of)

    monkeypatch.setattr(lookups, mistake, one_too_late)
    report = check(lively_model(**NEW_FORM, num_hidden_layers=1).float())
    assert not report.clean
    assert "future" in report.summary()


def test_in_training_all_that_a_token_looks_up_is_left_out_together() -> None:
    """With the probability asked for; what stays is scaled so that the mean is as it was."""
    tables = LookupTables(4, pair_table_rows=11, induction_tables=1, vocab_size=5, dropout=0.25)
    known = torch.randint(5, (8, 256))
    whole = tables.eval()(known, torch.arange(256))
    dropped = tables.train()(known, torch.arange(256))
    gone = (dropped == 0).all(-1)
    assert 0.2 < gone.float().mean() < 0.3
    torch.testing.assert_close(dropped[~gone], whole[~gone] / 0.75)
