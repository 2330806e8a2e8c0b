"""How far the logits of a model may move between two passes that must agree.

Legend: B batch, T time, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import attached
from mu_sota.model.errors import InputError

from .logits import change
from .model_adapter import ModelUnderTest
from .passes import Comparison, Passes

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest change let pass, in standard deviations of the logits, by the model's least precise number format. Between
passes of one shape a causal model changes by exactly 0 on a CPU. Many models compute parts in float32 whatever their
format, hence no finer one for float64."""

EXACT = 1e-4
"""Between passes of one shape, a change above this and below a coarse format's tolerance proves nothing: in bfloat16
the rounding of a causal model moved its logits by 0.04, and attention without a mask no further."""

SCALED_UP = 1e-3
"""The same, and the finest tolerance, with scaled-up weights: they amplify rounding, and a gate that opens lets more
than this through."""

GRADIENT_SHARE = 1e-2
"""The gradient check's tolerance in parts of the others': a masked softmax gives a derivative of exactly 0."""

ROUNDING_FACTOR = 10.0
"""Passes of different shapes take sums in another order. The model at hand shows how much that can move its logits:
every embedding is changed by one unit in the last place. Changes up to so many times that are rounding."""

ROUNDING_DRAWS = 3

TOO_COARSE = 1.0
"""A tolerance, in standard deviations of the logits, beyond which a comparison proves nothing."""


class Tolerance:
    """The tolerances for one model, in standard deviations of the logits.

    Args:
        passes: in eval mode; they show the model's number format and its rounding.

    Attributes:
        dtype: the coarsest number format in the model.
        fixed: between passes of one shape.
        scaled_up: the same with scaled-up weights.
        gradient: for the largest forbidden derivative, in parts of the largest of all.
        rounding: how far the logits move if every embedding changes by one unit in the last place; None without
            embeddings.

    Raises:
        InputError: the same pass twice gives different logits.
    """

    def __init__(self, passes: Passes) -> None:
        self.dtype = _least_precise(passes.tested)
        self.fixed = TOLERANCES[self.dtype]
        self.scaled_up = max(SCALED_UP, self.fixed)
        self.gradient = self.fixed * GRADIENT_SHARE
        self.require_determinism(passes)
        self.rounding = self.measure_rounding(passes)

    def of(self, comparison: Comparison) -> float:
        """Fixed between passes of one shape; else as far as rounding may move this model.

        Raises:
            InputError: rounding could explain any change.
        """
        if comparison.of_one_shape or self.rounding is None:
            return self.fixed
        tolerance = max(self.fixed, ROUNDING_FACTOR * self.rounding)
        if tolerance > TOO_COARSE:
            raise InputError(f"it may move by {tolerance:.1g} standard deviations of the logits, {self.too_coarse()}")
        return tolerance

    def measure_rounding(self, passes: Passes) -> float | None:
        """How far the logits move, in their standard deviations, if every embedding changes in its last place."""
        embeddings = passes.tested.embeddings()
        if not embeddings:
            return None
        # At least that of float32, in which many models compute parts whatever their format.
        unit = max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps)

        def shake(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None  # one that also returns the positions, say
            signs = torch.randint(2, output.shape, generator=passes.generator).to(output) * 2 - 1
            return output * (1 + unit * signs)

        with attached(embedding.register_forward_hook(shake) for embedding in embeddings):
            return max(change(passes.base(), passes.base.logits) for _ in range(ROUNDING_DRAWS)) / passes.scale

    def require_determinism(self, passes: Passes) -> None:
        """Raises InputError if the same pass twice gives different logits."""
        again = change(passes.base(), passes.base.logits) / passes.scale
        if again > self.fixed:
            raise InputError(self.not_deterministic(again))

    def not_deterministic(self, moved: float) -> str:
        return (
            f"the model is not deterministic: two passes over the same tokens, with the same random seed, differ by "
            f"{moved:.2g} standard deviations of the logits (tolerance {self.fixed:.0e}), so no comparison would "
            f"mean anything; switch off what makes it differ, or give a function that does"
        )

    def too_coarse(self) -> str:
        half = self.dtype in (torch.float16, torch.bfloat16)
        advice = "check it in float32" if half else "a model with smaller weights or fewer layers could be checked"
        return f"which in {str(self.dtype)[6:]} may be a leak or nothing but rounding; {advice}"


def _least_precise(tested: ModelUnderTest) -> torch.dtype:
    """The coarsest number format: of the weights, of the logits, or TF32 (with the digits of float16)."""
    formats = {tested.logits_dtype, *(weight.dtype for weight in tested.parameters())}
    if tested.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        formats.add(torch.float16)
    known = [dtype for dtype in TOLERANCES if dtype in formats]
    return max(known, key=lambda dtype: TOLERANCES[dtype], default=torch.float32)
