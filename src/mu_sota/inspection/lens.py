"""What the model would say if it ended after some layer, and what each block alone would say.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens", LessWrong) reads a state that a middle layer
left as if it were the last: with the model's own final norm and output projection. Early layers need not write what
these can read, so a poor readout does not show that the state holds nothing (Belrose et al. 2023, arXiv:2303.08112).

Legend: T tokens of the text, Q positions in it, L layers, N = 16 blocks, S values a block, D values of a state,
V vocabulary, K tokens kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mu_sota.model.blocks import NUM_BLOCKS, join_blocks, split_blocks
from mu_sota.model.modeling import MuForCausalLM

from .tracing import ALTERNATIVES, trace

_POSITIONS_AT_ONCE = 8  # each has N rows of V logits


@dataclass(frozen=True)
class LogitLens:
    """Readouts of the states of some tokens of a text; index 0 of L + 1 is the embedding, the last one the model's end.

    Attributes:
        positions: [Q].
        top_ids, top_log_probs: [L + 1, Q, K], the likeliest next tokens, and their log-probabilities in nats.
        block_ids, block_rises: [L + 1, Q, N, K]: the tokens whose logit a block raises most, and by how much. The block
            is the token's; all others are at their mean over the text. The rise is over the logits of the state all of
            whose blocks are at their mean.
    """

    positions: Tensor
    top_ids: Tensor
    top_log_probs: Tensor
    block_ids: Tensor
    block_rises: Tensor


@torch.no_grad()
def logit_lens(model: MuForCausalLM, ids: list[int], positions: Sequence[int], *, top: int = ALTERNATIVES) -> LogitLens:
    """Read the states of a text out after every layer, whole and block by block.

    The logits of a few positions in one layer are held at a time. Blocks that are off (`ablation.blocks_off`) are off
    here too.

    Args:
        ids: [T], the text; every layer's mean state is that over these tokens.
        positions: those to read out; a negative one counts from the text's end.
        top: K, or as many as there are tokens.

    Raises:
        ValueError: the text is longer than the model's positions, or empty.
        IndexError: there is no such position.
    """
    at = torch.arange(len(ids))[list(positions)]
    kept = min(top, model.config.vocab_size)
    own = torch.eye(NUM_BLOCKS, dtype=torch.bool, device=model.device)[:, :, None]
    likeliest, raised = [], []
    for state in trace(model, ids).states:
        read = state.to(model.device)
        likeliest.append(_logits(model, read[at]).log_softmax(-1).topk(kept))
        mean = read.mean(0)
        of_means = _logits(model, mean)
        for some in read[at].split(_POSITIONS_AT_ONCE):
            alone = torch.where(own, split_blocks(some)[:, None], split_blocks(mean))  # [Q, N, N, S]
            raised.append((_logits(model, join_blocks(alone)) - of_means).topk(kept))
    layers = len(likeliest)
    return LogitLens(
        positions=at,
        top_ids=torch.stack([best.indices for best in likeliest]).cpu(),
        top_log_probs=torch.stack([best.values for best in likeliest]).cpu(),
        block_ids=torch.cat([best.indices for best in raised]).unflatten(0, (layers, len(at))).cpu(),
        block_rises=torch.cat([best.values for best in raised]).unflatten(0, (layers, len(at))).cpu(),
    )


def _logits(model: MuForCausalLM, states: Tensor) -> Tensor:
    """Of [..., D] to [..., V], in float32 at least: in bfloat16, differences have few digits."""
    logits = model.lm_head(model.model.norm(states))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
