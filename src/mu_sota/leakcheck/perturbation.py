"""Other weights for a model under test: a gate that is shut hides a leak behind it.

A causal model is causal at any weights, so what leaks at other weights can leak after some training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

ALMOST_ZERO, NOISE = 1e-3, 0.02
"""A weight with no entry above the first passes on nothing that a check could find; noise of the second opens it.
Zero-initialised projections and gates (ReZero, LayerScale) start so."""

Signs = Literal["kept", "positive", "negative", "random"]

SIGNS: dict[Signs, str] = {
    "kept": "signs as they are",
    "positive": "gates and biases positive",
    "negative": "gates and biases negative",
    "random": "signs of gates and biases at random",
}
"""sigmoid(-20) opens if it becomes sigmoid(20), 1 - sigmoid(20) if it becomes 1 - sigmoid(-20)."""

FACTORS = (4.0, 2.0, 1.0)
"""Tried in this order: the first with which the logits are finite. A product of five gates of 0.01 is 1e-10, of five
gates of 4 it is 1,024."""

LEAST_GATE, LEAST_MATRIX = 1.0, 0.1
"""A weight whose largest entry is smaller is brought to this first."""


@dataclass(frozen=True)
class Scaling:
    """How weights are scaled up.

    Args:
        signs: of biases, gates and scales: kept, all positive, all negative, or drawn at random for each entry.
        factor: by which weights are multiplied, after small ones were made larger.
    """

    signs: Signs
    factor: float

    def __str__(self) -> str:
        return f"weights times {self.factor:g}, {SIGNS[self.signs]}"


def perturb_zeros(weights: Iterable[nn.Parameter]) -> None:
    """Add some noise to weights that are all almost zero."""
    generator = torch.Generator().manual_seed(0)
    for weight in dict.fromkeys(weights):
        if _can_change(weight) and weight.abs().max().item() < ALMOST_ZERO:
            weight.data.add_(NOISE * torch.randn(weight.shape, generator=generator).to(weight))


def scale_up(weights: Iterable[nn.Parameter], scaling: Scaling) -> None:
    """Scale weights up, and change the signs of gates.

    Zeros stay zeros. Masks stay as they are: weights that hold infinities, or tables over positions of two values. So
    do, in a model that is trained in parts, the frozen weights: they are constants.
    """
    generator = torch.Generator().manual_seed(0)
    found = list(dict.fromkeys(weights))
    trained = [weight for weight in found if weight.requires_grad] or found
    for weight in trained:
        if not _can_change(weight) or _is_mask(weight):
            continue
        largest = weight.abs().max().item()
        gate = _is_gate(weight)
        if largest < ALMOST_ZERO:
            weight.data.copy_(NOISE * torch.randn(weight.shape, generator=generator))
            largest = weight.abs().max().item()
        weight.data.mul_(scaling.factor * max(1.0, (LEAST_GATE if gate else LEAST_MATRIX) / largest))
        if gate:
            _set_signs(weight.data, scaling.signs, generator)


def _set_signs(weight: Tensor, signs: Signs, generator: torch.Generator) -> None:
    if signs == "positive":
        weight.abs_()
    elif signs == "negative":
        weight.abs_().neg_()
    elif signs == "random":
        weight.mul_(torch.randint(2, weight.shape, generator=generator).to(weight) * 2 - 1)


def _is_gate(weight: nn.Parameter) -> bool:
    """Biases, scales and gates: one entry a channel, or all entries of one sign."""
    return sum(size > 1 for size in weight.shape) <= 1 or bool(weight.min() > 0 or weight.max() < 0)


def _is_mask(weight: nn.Parameter) -> bool:
    """A table over positions in which entries are open or shut."""
    if not weight.isfinite().all():
        return True
    square = weight.ndim > 1 and weight.shape[-1] == weight.shape[-2] > 1
    if not square:
        return False
    above = weight.flatten(0, -3)[0].triu(1) if weight.ndim > 2 else weight.triu(1)
    return not above.any() or len(weight.unique()) == 2


def _can_change(weight: nn.Parameter) -> bool:
    if not weight.is_floating_point() or weight.is_meta or weight.is_inference() or not weight.numel():
        return False
    return not any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True))
