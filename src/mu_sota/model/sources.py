"""What four blocks receive by construction, as their names say.

P receives a vector of the position, and C1 one of the token before, added to their part of the token's embedding.
Instead of that part, C2 and G receive a sum over all that was read. In it, each token weighs less than the one after
it: 0.99 of it for C2, 0.98 for G. Divided by the root of the weights' sum, it keeps the scale of one row.

Legend: B batch, T new tokens, L known tokens (cached and new ones), D state, S values a block, V vocabulary.
"""

import torch
from torch import Tensor, nn

from .backend import readable
from .blocks import BLOCKS, join_blocks, split_blocks
from .configuration import SOURCES_BY_TOKEN
from .lookups import NO_TOKEN, tokens_before

SOURCE_BLOCKS = ("P", *SOURCES_BY_TOKEN)
SOURCE_NUMBERS = [[block.name for block in BLOCKS].index(name) for name in SOURCE_BLOCKS]
DECAYS = {"C2": 0.99, "G": 0.98}
"""Per token: half of the sum is from the last 69 tokens, and from the last 34."""


@readable
class BlockSources(nn.Module):
    """The tables of a model's sources, one for each of `SOURCE_BLOCKS` and named as it is.

    Args:
        block_size: S, the values of a row.
        positions: rows of the table of positions.
        vocab_size: V, the rows of each of the others.
    """

    def __init__(self, block_size: int, positions: int, vocab_size: int) -> None:
        super().__init__()
        rows = {"P": positions} | dict.fromkeys(SOURCES_BY_TOKEN, vocab_size)
        self.tables = nn.ModuleDict({name: nn.Embedding(rows[name], block_size) for name in SOURCE_BLOCKS})

    def forward(self, state: Tensor, known: Tensor, at: Tensor, position_ids: Tensor) -> Tensor:
        """The state of each new token with what its blocks receive, [B, T, D].

        Args:
            state: [B, T, D].
            known: [B, L], as `lookups.known_tokens` gives them.
            at: [T], where the new tokens stand among the known ones.
            position_ids: [B or 1, T].
        """
        blocks, (of_position, of_previous, *of_sums) = list(split_blocks(state).unbind(-2)), self.tables.values()
        position, previous, *sums = SOURCE_NUMBERS
        blocks[position] = blocks[position] + of_position(position_ids)
        blocks[previous] = blocks[previous] + _rows(of_previous, tokens_before(known, at, 1))
        age = at[:, None] - torch.arange(known.shape[1], device=known.device)
        for number, table, decay in zip(sums, of_sums, DECAYS.values(), strict=True):
            weights = torch.where(age >= 0, decay ** age.clamp(min=0), 0.0)  # [T, L]
            scale = ((known != NO_TOKEN).to(weights) @ weights.T).clamp(min=1.0).rsqrt()[..., None]  # 1 at padding
            rows = _rows(table, known)
            blocks[number] = (weights.to(rows) @ rows) * scale.to(rows)
        return join_blocks(torch.stack(blocks, dim=-2))


def _rows(table: nn.Module, ids: Tensor) -> Tensor:
    """The rows of tokens, and zeros where there is none."""
    return table(ids.clamp(min=0)).masked_fill((ids == NO_TOKEN)[..., None], 0.0)
