"""Tables that are looked up by a token and its past, and added to the embedding: knowledge that costs no arithmetic.

A table of *pairs* has a row for a token and the one before it, hashed: an n-gram table, as in public speed runs of
small models (modded-nanogpt #201). *Induction* tables have a row for the token that followed when the same tokens last
occurred in the text: what an induction head finds (Olsson et al. 2022, arXiv:2209.11895), and the match model of
compressors (Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data Compression").

Legend: B batch, T new tokens, L known tokens (cached and new ones), V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from .backend import readable

NO_TOKEN = -1  # before the first token of a text, and at padding
# Odd numbers of 32 bits that spread nearby ids over all rows; products with ids of 20 bits stay below 2^53.
_OF_PREVIOUS, _OF_TOKEN = 0x9E3779B1, 0x85EBCA77


def known_tokens(ids: Tensor, mask: Tensor | None, cache: Cache | None, cache_layer: int) -> Tensor:
    """The cached and the new tokens, [B, L]; -1 at padding. Beyond them, a cache of a fixed size has anything.

    Args:
        ids: [B, T], new tokens.
        mask: as in `attention.attention_bias`.
        cache: keeps the ids in a cache layer of their own, where it is cropped and reordered with all others.
        cache_layer: its index.
    """
    known = ids
    if cache is not None:
        known = cache.update(ids[:, None, :, None], ids[:, None, :, None], cache_layer)[0][:, 0, :, 0]
    if mask is None:
        return known
    real = mask if mask.dim() == 2 else mask[:, 0, -1]  # what the last token sees
    real = real == 0 if mask.dim() == 4 and mask.dtype != torch.bool else real.bool()
    return known.masked_fill(~F.pad(real, (0, known.shape[1] - real.shape[1])), NO_TOKEN)


def tokens_before(known: Tensor, positions: Tensor, distance: int) -> Tensor:
    """The tokens at a distance before some positions [T], [B, T]; -1 where there are none."""
    at = positions - distance
    return known[:, at.clamp(min=0)].masked_fill(at < 0, NO_TOKEN)


def pair_rows(previous: Tensor, ids: Tensor, rows: int) -> Tensor:
    """The row of each pair, [B, T]: the same on every device, and different pairs may share one.

    Args:
        previous: [B, T], the token before, or -1 where there is none.
        ids: [B, T].
        rows: of the table.
    """
    mixed = (previous + 1) * _OF_PREVIOUS + (ids + 1) * _OF_TOKEN
    mixed = mixed ^ (mixed >> 15)
    return (mixed ^ (mixed >> 29)) % rows


def followers(known: Tensor, positions: Tensor, length: int) -> Tensor:
    """For each position, the token after the latest earlier occurrence of its last `length` tokens, [B, T]; or -1.

    Args:
        known: [B, L].
        positions: [T], of the new tokens among the known ones.
    """
    at = torch.arange(known.shape[1], dtype=torch.int32, device=known.device)
    same = (at < positions[:, None])[None]  # [B, T, L]
    for distance in range(length):
        wanted = tokens_before(known, positions, distance)[:, :, None]
        there = F.pad(known, (distance, 0), value=NO_TOKEN)[:, None, : known.shape[1]]
        same = same & (wanted == there) & (wanted != NO_TOKEN)
    latest = torch.where(same, at, -1).amax(-1).long()
    return known.gather(1, latest + 1).masked_fill(latest < 0, NO_TOKEN)


@readable
class LookupTables(nn.Module):
    """The tables of a model. They start at zero: what a row has not learned yet changes nothing.

    Args:
        size: values of a row.
        pair_table_rows: 0 for no table of pairs.
        induction_tables: their number; table n is looked up by the last n tokens.
        vocab_size: rows of an induction table.
        dropout: probability with which all rows of a token are left out, in training: few tokens have rows that are
            worth as much on another text.
    """

    def __init__(self, size: int, pair_table_rows: int, induction_tables: int, vocab_size: int, dropout: float) -> None:
        super().__init__()
        self.pairs = nn.Embedding(pair_table_rows, size) if pair_table_rows else None
        self.induction = nn.ModuleList(nn.Embedding(vocab_size, size) for _ in range(induction_tables))
        self.dropout = nn.Dropout(dropout)

    @property
    def tables(self) -> list[nn.Embedding]:
        """All of them, that of pairs first."""
        return [*([self.pairs] if self.pairs is not None else []), *self.induction]

    def forward(self, known: Tensor, positions: Tensor) -> Tensor:
        """The sum of the rows of each new token, [B, T, D].

        Args:
            known: [B, L], as `known_tokens` gives them.
            positions: [T], of the new tokens among the known ones.
        """
        looked_up = []
        if self.pairs is not None:
            previous, ids = (tokens_before(known, positions, distance) for distance in (1, 0))
            looked_up.append(self.pairs(pair_rows(previous, ids, self.pairs.num_embeddings)))
        for length, table in enumerate(self.induction, start=1):
            found = followers(known, positions, length)
            looked_up.append(table(found.clamp(min=0)).masked_fill((found == NO_TOKEN)[..., None], 0.0))
        rows = sum(looked_up[1:], start=looked_up[0])
        return rows * self.dropout(rows.new_ones(*rows.shape[:2], 1))
