"""Derivatives of what a model predicts towards what it must not see.

Legend: B batch, T time, D width.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import hooked
from mu_sota.model.errors import InputError

from .logits import change
from .passes import EVERYTHING, Comparison, Passes


class NoDerivative(InputError):
    """There is none to be had; the message says why."""


class Derivative(NamedTuple):
    """The largest forbidden derivative, in parts of the largest of all; its meaning; passes that should show it too."""

    share: float
    meaning: str
    comparisons: list[Comparison]


@torch.enable_grad()
def largest_derivative(passes: Passes, embeddings: list[nn.Embedding], tolerance: float) -> Derivative:
    """Of the logits towards embeddings of later tokens and of other rows.

    Args:
        passes: of the model in the mode in which it is to be differentiated.
        embeddings: where tokens become vectors.
        tolerance: a share of the largest derivative; above it, one towards other rows is not taken for one over time.

    Raises:
        NoDerivative: no gradient reaches an embedding, or it is not finite.
    """
    leaves: list[Tensor] = []
    rows, length = passes.rows, passes.length

    def as_leaf(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or length not in output.shape:
            return None
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # models scale embeddings in place

    passes.counter.begin_pass()
    with hooked(embeddings, as_leaf), passes.tested.mode(passes.setting.training):
        passes.seed(passes.setting.seed)
        logits = passes.tested.logits(passes.ids)
    if not leaves:
        raise NoDerivative("no nn.Embedding gives one vector for each of the tokens")
    if not logits.requires_grad:
        raise NoDerivative("no gradient flows from the logits to the embeddings")
    logits = torch.where(logits.isfinite(), logits, torch.zeros((), device=logits.device))
    weighted = logits * torch.randn(logits.shape, generator=passes.generator).to(logits.device)
    found: list[Derivative] = []
    for row, comparison in enumerate(passes.replaced_rows()):
        others = [EVERYTHING if other != row else slice(0) for other in range(rows)]
        found.append(
            Derivative(
                _forbidden_share(weighted[row].sum(), leaves, others, passes),
                f"what it predicts in row {row} has a derivative towards other rows",
                [comparison],
            )
        )
    over_rows = max(found, key=lambda derivative: derivative.share)
    if over_rows.share > tolerance:
        return over_rows
    # A cut of its own in every row: all positions in T / B backward passes.
    for start in range(1, length, rows):
        cuts = [min(start + row, length - 1) for row in range(rows)]
        seen = torch.stack([weighted[row, :cut].sum() for row, cut in enumerate(cuts)]).sum()
        later = [slice(cut, None) for cut in cuts]
        found.append(
            Derivative(
                _forbidden_share(seen, leaves, later, passes),
                f"what it predicts has a derivative towards later tokens (most at cuts {cuts[0]} to {cuts[-1]})",
                list(passes.futures(cuts)),
            )
        )
    return max(found, key=lambda derivative: derivative.share)


def _forbidden_share(seen: Tensor, leaves: list[Tensor], forbidden: list[slice], passes: Passes) -> float:
    """Largest derivative towards forbidden positions, by row, in parts of the largest of all."""
    largest = within = 0.0
    passes.counter.begin_pass()
    for gradient in torch.autograd.grad(seen, leaves, retain_graph=True, allow_unused=True):
        if gradient is None:
            continue
        # [T, B, D], or, of positions that the rows share, [T, D] or [T, 1, D]
        gradient = gradient.movedim(gradient.shape.index(passes.length), 0)
        largest = max(largest, _magnitude(gradient))
        if gradient.ndim > 2 and gradient.shape[1] == passes.rows:
            parts = [gradient[places, row] for row, places in enumerate(forbidden)]
        else:  # forbidden is what is so in all rows
            parts = [gradient[max(places.start or 0 for places in forbidden) or passes.length :]]
        within = max(within, *(_magnitude(part) for part in parts))
    if largest == 0.0:
        raise NoDerivative("no gradient flows from the logits to the embeddings")
    if not math.isfinite(largest):
        raise NoDerivative("its derivatives are not finite")
    return within / largest


def _magnitude(tensor: Tensor) -> float:
    """Largest absolute value; infinite where there is NaN."""
    return change(tensor, torch.zeros_like(tensor))
