"""What comparisons of passes show: nothing, a finding and where it arises, or that it cannot be told.

Legend: B batch, T time, V vocabulary.
"""

import torch

from mu_sota.model.errors import InputError

from .model_adapter import ModelUnderTest

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

ROUNDING_FACTOR = 10.0
"""Passes of different shapes take sums in another order. How much that can move the logits of a given model is
measured, by changing every embedding by one unit in the last place; changes up to so many times that are rounding."""

ROUNDING_DRAWS = 3

TOO_COARSE = 1.0
"""A tolerance, in standard deviations of the logits, beyond which a comparison says nothing."""


class TooCoarse(InputError):
    """Rounding could explain any change; the message says so."""


def least_precise(tested: ModelUnderTest) -> torch.dtype:
    """The coarsest number format in play: of the weights, of the logits, or TF32 (with the digits of float16)."""
    formats = {tested.logits_dtype, *(weight.dtype for weight in tested.parameters())}
    if tested.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        formats.add(torch.float16)
    known = [dtype for dtype in TOLERANCES if dtype in formats]
    return max(known, key=lambda dtype: TOLERANCES[dtype], default=torch.float32)
