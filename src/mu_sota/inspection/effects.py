"""What each block does for the loss: how much it rises where a block is replaced by values that say less, or other.

*Mean ablation* replaces a block by its mean over all tokens, which takes away what the block tells about this token and
leaves what it has for all. *Interchange* replaces it by what it has at the same position of another piece of text
(Geiger et al. 2021, arXiv:2106.02997): values that do occur, but belong to something else. Zero ablation, in
`ablation.py`, takes away the mean too, and so moves the state to where the model never was.

Legend: P pieces of text, T predictions a piece, L layers, N = 16 blocks, S values a block, B pieces of a batch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from mu_sota.common.hooks import attached
from mu_sota.model.blocks import BLOCKS, split_blocks
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM

from .ablation import blocks_replaced, readers

CONFIDENCE = 0.95

KINDS = ("mean ablation", "interchange")


@dataclass(frozen=True)
class BlockEffects:
    """By how much the loss of each piece rises where a block is replaced, in nats a token.

    Attributes:
        loss: [P] float64, of the unchanged model, the mean over the T predictions of a piece.
        increase: [2, L + 2, N, P] float64: that of the changed model minus `loss`, by kind as in `KINDS`, by place, by
            block. A place is the input of layer 1 to L or of the final norm, with all other places unchanged; the last
            one is all these places at once.
    """

    loss: Tensor
    increase: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean increase over pieces, [2, L + 2, N]."""
        return self.increase.mean(-1)

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Low and high end of each mean's 95 % interval, [2, L + 2, N]: Student's t over pieces.

        It is about other texts, not about other trainings of the model. There is no correction for its many means.
        """
        pieces = self.increase.shape[-1]
        half = stats.t.ppf((1 + CONFIDENCE) / 2, pieces - 1) * self.increase.std(-1) / pieces**0.5
        return self.mean - half, self.mean + half

    @property
    def ranking(self) -> list[str]:
        """The blocks' names, that of the greatest mean increase under mean ablation at all places first."""
        order = self.mean[KINDS.index("mean ablation"), -1].argsort(descending=True, stable=True)
        return [BLOCKS[block].name for block in order.tolist()]

    def as_dict(self) -> dict[str, Any]:
        """For records: means and intervals, [L + 2, N] of each kind; the single pieces are left out."""
        layers = self.increase.shape[1] - 2
        figures = {"mean": self.mean, "low": self.interval[0], "high": self.interval[1]}
        return {
            "pieces": len(self.loss),
            "loss": self.loss.mean().item(),
            "places": [*(f"layer {number}" for number in range(1, layers + 1)), "final norm", "all"],
            "blocks": [block.name for block in BLOCKS],
            "increase": {
                kind: {name: figure[index].tolist() for name, figure in figures.items()}
                for index, kind in enumerate(KINDS)
            },
            "ranking": self.ranking,
        }


@torch.no_grad()
def block_effects(
    model: MuForCausalLM,
    texts: Tensor,
    *,
    batch_size: int,
    progress: Callable[[list[range]], Iterable[range]] = iter,
) -> BlockEffects:
    """Measure what each block does for the loss, at each place where the state is read and at all of them.

    It takes 2 (L + 2) N passes over all texts, in the model's own precision, on its own device. States are held for one
    batch at a time. Replacements, means and other pieces' values alike, are those of the unchanged model.

    Args:
        model: in eval mode.
        texts: [P, T + 1] int64, pieces that are independent: each from another document or place. Interchange gives
            each piece the values of the next, and the last one those of the first.
        batch_size: pieces at once.
        progress: wraps the list of batches, as `tqdm` does.

    Raises:
        InputError: the model is in training mode, or there are not two pieces of two tokens.
        ValueError: a piece is longer than the model's positions.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout changes its losses; call model.eval() first")
    if texts.dim() != 2 or min(texts.shape) < 2:
        raise InputError(
            f"texts have the shape {list(texts.shape)}, but effects need [pieces, tokens] with 2 of each at least"
        )
    texts = texts.to(model.device)
    others = texts.roll(-1, 0)
    share = range(len(texts))
    batches = [share[start : start + batch_size] for start in share[::batch_size]]

    unchanged, sums = [], []
    for batch in batches:
        with _states_kept(model) as seen:
            unchanged.append(_losses(model, texts[list(batch)]))
        sums.append(torch.stack([blocks.sum((0, 1), dtype=torch.float64) for blocks in seen]))
    means = torch.stack(sums).sum(0) / texts[:, 1:].numel()  # [L + 1, N, S]

    singly = [[place] for place in range(len(means))]
    everywhere = list(range(len(means)))
    changed = []
    for batch in progress(batches):
        pieces = texts[list(batch)]
        with _states_kept(model) as theirs:
            model.model(others[list(batch), :-1])
        losses = []
        for values in (means, theirs):  # in the order of KINDS
            for places in (*singly, everywhere):
                for block in BLOCKS:
                    with blocks_replaced(model, [block.name], {place: values[place] for place in places}):
                        losses.append(_losses(model, pieces))
        changed.append(torch.stack(losses).unflatten(0, (len(KINDS), -1, len(BLOCKS))))
    loss = torch.cat(unchanged)
    return BlockEffects(loss=loss, increase=torch.cat(changed, dim=-1) - loss)


@contextmanager
def _states_kept(model: MuForCausalLM) -> Iterator[list[Tensor]]:
    """What every reader gets within the context, in order, [B, T, N, S] each; for one pass."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(split_blocks(inputs[0]))

    with attached(reader.register_forward_pre_hook(keep) for reader in readers(model)):
        yield kept


def _losses(model: MuForCausalLM, pieces: Tensor) -> Tensor:
    """The loss of each piece [B, T + 1] in nats a token, [B] float64; the logits of no more than one piece are held."""
    hidden = model.model(pieces[:, :-1]).last_hidden_state
    sums = [model._summed_loss(states, labels)[0] for states, labels in zip(hidden, pieces[:, 1:], strict=True)]
    return torch.stack(sums).double().cpu() / (pieces.shape[1] - 1)
