"""The logits in what a model returns, and how far they move.

Legend: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def named_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors [B, T, V] in whatever a model returns, by key, attribute or index; one by itself has no name."""
    if isinstance(output, Tensor):
        return {"": output} if output.ndim == 3 and output.is_floating_point() else {}
    if isinstance(output, Mapping):
        items = dict(output)
    elif isinstance(output, tuple | list):
        items = dict(enumerate(output)) | getattr(output, "_asdict", dict)()
    else:
        items = {**getattr(output, "__dict__", {}), "logits": getattr(output, "logits", None)}
    if isinstance(items.get("logits"), tuple | list):
        items |= {f"logits.{index}": item for index, item in enumerate(items["logits"])}
    return {str(name): item for name, item in items.items() if isinstance(item, Tensor) and named_tensors(item)}


def logits_in(output: Any) -> list[Tensor]:
    """What could be the logits in whatever a model returns: a tensor [B, T, V], `.logits`, `["logits"]`, or all such
    tensors of a tuple."""
    return list(candidates(named_tensors(output)).values())


def candidates(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    explicit = {name: one for name, one in named.items() if name.partition(".")[0] == "logits"}
    return explicit or {name: one for name, one in named.items() if not name or name.isdigit()}


def listed(named: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name or 'the tensor itself'}: {list(one.shape)}" for name, one in named.items())


def change(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two tensors of one shape.

    Equal infinities (masked entries) are equal, and so are two NaN; one NaN is infinitely far from all else.
    """
    if ours.numel() == 0:
        return 0.0
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    largest = (ours - theirs).abs().masked_fill(same, 0).max().item()
    return math.inf if math.isnan(largest) else largest


def spread(logits: Tensor) -> float:
    """How far logits [B, T, V] vary from position to position: their standard deviation over B and T, of every entry of
    the vocabulary by itself, as a root mean square over those that vary at all.

    An entry that is masked everywhere, or a bias, is not to set the scale of the others.
    """
    flat = logits.flatten(0, 1)
    finite = flat.isfinite()
    count = finite.sum(0).clamp(min=1)
    # From the first row on, so that what is constant, be it -1e9, is exactly so.
    moved = (flat - flat[0].masked_fill(~finite[0], 0)).masked_fill(~finite, 0)
    variance = (moved - moved.sum(0) / count).square().masked_fill(~finite, 0).sum(0) / count
    variance = variance[variance.isfinite() & (variance > 0)]
    return math.sqrt(variance.mean().item()) if len(variance) else 0.0
