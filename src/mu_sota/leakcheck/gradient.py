"""The check *gradient*: derivatives of predictions towards tokens that they must not depend on.

Legend: B batch, T time, D width.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import attached, without_compilation
from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .logits import change
from .passes import EVERYTHING, Comparison, Passes
from .replaced_tokens import futures, replaced_rows
from .report import Result
from .verdict import Comparer, Finding


class _Derivative(NamedTuple):
    """The largest forbidden derivative, in parts of the largest of all; its meaning; passes that should show it too."""

    share: float
    meaning: str
    comparisons: list[Comparison]


def gradient(passes: Passes, comparer: Comparer) -> Result:
    """The result of the check, in the mode of the passes."""
    tolerance = comparer.tolerance.gradient
    passes.counter.begin_check("gradient")
    try:
        with without_compilation():
            worst = _largest_derivative(passes, tolerance)
    except InputError as reason:
        return Result("gradient", "skipped", meaning=str(reason))
    except Exception as error:  # of autograd, or of a backward pass of the model's own
        return Result("gradient", "skipped", meaning=one_line(error))
    unit = "of the largest derivative"
    if worst.share <= tolerance:
        return Result("gradient", "ok", worst.share, tolerance, unit)
    comparer.leaky_checks.add("gradient")
    location = comparer.first_location(Finding(math.inf, comparer.tolerance.fixed, one) for one in worst.comparisons)
    return Result("gradient", "leak", worst.share, tolerance, unit, worst.meaning, location)


@torch.enable_grad()
def _largest_derivative(passes: Passes, tolerance: float) -> _Derivative:
    """Of the logits towards embeddings of later tokens and of other rows.

    Args:
        passes: in the mode in which the model is differentiated.
        tolerance: if the share towards other rows is larger, that is returned, and no derivative over time is taken.

    Raises:
        InputError: no gradient reaches an embedding, or it is not finite.
    """
    rows, length = passes.rows, passes.length
    weighted, leaves = _weighted_logits(passes)
    found: list[_Derivative] = []
    for row, comparison in enumerate(replaced_rows(passes)):
        others = [EVERYTHING if other != row else slice(0) for other in range(rows)]
        found.append(
            _Derivative(
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
        before = torch.stack([weighted[row, :cut].sum() for row, cut in enumerate(cuts)]).sum()
        later = [slice(cut, None) for cut in cuts]
        found.append(
            _Derivative(
                _forbidden_share(before, leaves, later, passes),
                f"what it predicts has a derivative towards later tokens (most at cuts {cuts[0]} to {cuts[-1]})",
                list(futures(passes, cuts)),
            )
        )
    return max(found, key=lambda derivative: derivative.share)


def _weighted_logits(passes: Passes) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, T, V] with random weights, and the embeddings' outputs as leaves, towards which to differentiate."""
    leaves: list[Tensor] = []

    def as_leaf(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or passes.length not in output.shape:
            return None
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # models scale embeddings in place

    passes.counter.begin_pass()
    hooks = (embedding.register_forward_hook(as_leaf) for embedding in passes.tested.embeddings())
    with attached(hooks), passes.tested.state.mode(passes.setting.training):
        passes.seed(passes.setting.seed)
        logits = passes.tested.logits(passes.ids)
    if not leaves:
        raise InputError("no nn.Embedding gives one vector for each of the tokens")
    if not logits.requires_grad:
        raise InputError("no gradient flows from the logits to the embeddings")
    logits = torch.where(logits.isfinite(), logits, torch.zeros((), device=logits.device))
    return logits * torch.randn(logits.shape, generator=passes.generator).to(logits.device), leaves


def _forbidden_share(predicted: Tensor, leaves: list[Tensor], forbidden: list[slice], passes: Passes) -> float:
    """Largest derivative towards forbidden positions (a slice for each row), in parts of the largest of all."""
    largest = within = 0.0
    passes.counter.begin_pass()
    for gradient in torch.autograd.grad(predicted, leaves, retain_graph=True, allow_unused=True):
        if gradient is None:
            continue
        # [T, B, D], or, of positions that the rows share, [T, D] or [T, 1, D]
        gradient = gradient.movedim(gradient.shape.index(passes.length), 0)
        largest = max(largest, _magnitude(gradient))
        if gradient.ndim > 2 and gradient.shape[1] == passes.rows:
            parts = [gradient[positions, row] for row, positions in enumerate(forbidden)]
        else:  # forbidden are the positions forbidden in all rows
            parts = [gradient[max(positions.start or 0 for positions in forbidden) or passes.length :]]
        within = max(within, *(_magnitude(part) for part in parts))
    if largest == 0.0:
        raise InputError("no gradient flows from the logits to the embeddings")
    if not math.isfinite(largest):
        raise InputError("its derivatives are not finite")
    return within / largest


def _magnitude(tensor: Tensor) -> float:
    """Largest absolute value; infinite where there is NaN."""
    return change(tensor, torch.zeros_like(tensor))
