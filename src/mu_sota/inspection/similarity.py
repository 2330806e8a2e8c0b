"""Do blocks differ? How alike the values of two blocks are over many tokens, and how many directions each one uses.

It takes states alone, cut into blocks, so it serves equal slices of any model's state.

Legend: n tokens, N blocks, S values a block.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mu_sota.model.errors import InputError


@dataclass(frozen=True)
class Similarity:
    """How alike blocks are, all in float64. A block that is constant over the tokens is like no other.

    Attributes:
        cka: [N, N], linear centred kernel alignment, 0 to 1: the same for a block that is turned, scaled or shifted
            (Kornblith et al. 2019, arXiv:1905.00414). 0 with a constant block, also with itself.
        r2: [N, N], the share of the variance of block `column` that a linear map, with an intercept, of block `row`
            predicts. It is fitted on the first half of the tokens by least squares, measured on the second half, and
            weights the S values by their variance there. Below 0, the second half's mean predicts better. 0 if the
            predicted block is constant in the second half.
        effective_rank: [N], the exponential of the entropy of the covariance's eigenvalues, divided by their sum (Roy
            and Vetterli 2007, "The effective rank"): 1 to S directions; 0 for a constant block.
        cosine: [N, N], the mean over tokens of the cosine between two blocks' values as they stand. It depends on
            which value of a block comes first, and on means: earlier studies give it, and `cka` says more.
    """

    cka: Tensor
    r2: Tensor
    effective_rank: Tensor
    cosine: Tensor

    @property
    def most_alike(self) -> tuple[int, int]:
        """The two blocks with the highest CKA, the lower index first."""
        blocks = len(self.cka)
        rows, columns = torch.triu_indices(blocks, blocks, offset=1)
        best = self.cka[rows, columns].argmax()
        return int(rows[best]), int(columns[best])

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        figures = {name: figure.tolist() for name, figure in vars(self).items()}
        return figures | {"most_alike": list(self.most_alike)}


def block_similarity(states: Tensor) -> Similarity:
    """Compare the blocks of states with each other.

    Args:
        states: [n, N, S], in the order of the text, several texts one after the other: neighbouring tokens are alike,
            so the halves of `r2` should be of different texts.

    Raises:
        InputError: there are fewer than two blocks; fewer tokens than 2 (S + 1), from which no linear map can be
            fitted; or a value is not finite.
    """
    if states.dim() != 3 or states.shape[1] < 2 or len(states) < 2 * (states.shape[2] + 1):
        raise InputError(
            f"states have the shape {list(states.shape)}, but must have [tokens, blocks, values] with 2 blocks and "
            f"2 (values + 1) tokens at least"
        )
    if not states.isfinite().all():
        raise InputError("a value of the states is not finite: the model's weights are damaged, or its training failed")
    states = states.to("cpu", torch.float64)
    blocks, directions = _centred(states), F.normalize(states, dim=-1)
    cross = torch.einsum("nis,njt->ijst", blocks, blocks)  # the covariances of two blocks' values, times n
    aligned = cross.square().sum((-2, -1))
    own = aligned.diagonal().sqrt()
    return Similarity(
        cka=_ratio(aligned, own[:, None] * own),
        r2=_r2(blocks),
        effective_rank=_effective_rank(cross.diagonal().movedim(-1, 0)),
        cosine=torch.einsum("nis,njs->ij", directions, directions) / len(states),
    )


def _centred(states: Tensor) -> Tensor:
    """States minus their mean over tokens; exactly 0 where they are constant, whose mean may be off by a rounding."""
    shifted = states - states[0]
    return shifted - shifted.mean(0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is 0 where its denominator is."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def _effective_rank(covariances: Tensor) -> Tensor:
    """Of [N, S, S], times any number, to [N]."""
    eigenvalues = torch.linalg.eigvalsh(covariances).clamp(min=0)
    total = eigenvalues.sum(-1, keepdim=True)
    rank = torch.special.entr(_ratio(eigenvalues, total)).sum(-1).exp()
    return rank.masked_fill(total[:, 0] == 0, 0.0)


def _r2(states: Tensor) -> Tensor:
    """Of [n, N, S] to [N, N]; see `Similarity.r2`."""
    half = len(states) // 2
    fitted, measured = states[:half], states[half:]
    variance = _centred(measured).square().sum((0, 2))  # [N], times the number of tokens
    mean, inputs = fitted.mean(0), _centred(fitted)
    rows = []
    for block in range(states.shape[1]):
        # gelsd finds a solution also where values of the block depend on each other.
        maps = torch.linalg.lstsq(inputs[:, block], inputs.flatten(1), driver="gelsd").solution  # [S, N * S]
        predicted = mean + ((measured - mean)[:, block] @ maps).unflatten(1, mean.shape)
        rows.append(1 - _ratio((measured - predicted).square().sum((0, 2)), variance))
    return torch.stack(rows).masked_fill(variance == 0, 0.0)
