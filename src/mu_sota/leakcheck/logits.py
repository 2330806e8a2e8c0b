"""The logits among the outputs of a model, and how far they move from one pass to another.

Legend: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mu_sota.model.errors import InputError


def named_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors [B, T, V] in a model's output, by key, attribute or index; the name of a lone tensor is empty."""
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
    """The candidates for the logits in a model's output: the tensor [B, T, V] itself, `.logits`, `["logits"]`, or all
    such tensors of a tuple."""
    return list(_candidates(named_tensors(output)).values())


def choose_logits(output: Any, ids: Tensor, vocab_size: int, name: str | int | None) -> Tensor:
    """The logits in a model's output.

    Args:
        output: of the model.
        ids: [B, T], its input; a tensor of the same length is preferred.
        vocab_size: a tensor of this last size is preferred; 0 if unknown.
        name: key, attribute or index of the logits; None for the only candidate.

    Raises:
        InputError: there is no candidate, more than one, or none of that name.
    """
    tensors = named_tensors(output)
    if name is not None:
        if str(name) not in tensors:
            raise InputError(
                f"the model returned nothing [B, T, V] that is called {str(name)!r}; --output (output=) can be one of "
                f"{_listed(tensors) or 'nothing: there is no such tensor'}"
            )
        return tensors[str(name)]
    candidates = _candidates(tensors)
    if not candidates:
        others = f"; of what it did return, name one with --output (output=): {_listed(tensors)}" if tensors else ""
        raise InputError(
            f"the model did not return logits: neither a tensor [B, T, V], nor something with .logits{others}"
        )
    if len(candidates) > 1:
        of_same_length = {name: one for name, one in candidates.items() if one.shape[:2] == ids.shape}
        candidates = of_same_length or candidates
    if len(candidates) > 1:
        of_vocabulary = [one for one in candidates.values() if one.shape[-1] == vocab_size]
        if len(of_vocabulary) != 1:
            raise InputError(
                f"the model returned several tensors that could be logits ({_listed(candidates)}); "
                f"{'' if of_vocabulary else 'give vocab_size, or '}name the one with --output NAME or INDEX (output=)"
            )
        return of_vocabulary[0]
    return next(iter(candidates.values()))


def _candidates(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    explicit = {name: one for name, one in tensors.items() if name.partition(".")[0] == "logits"}
    return explicit or {name: one for name, one in tensors.items() if not name or name.isdigit()}


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name or 'the tensor itself'}: {list(one.shape)}" for name, one in tensors.items())


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
    """Standard deviation of logits [B, T, V] over B and T, of every entry of the vocabulary by itself, as a root mean
    square over the entries that vary at all: neither a masked entry nor a bias sets the scale of the others.
    """
    flat = logits.flatten(0, 1)
    finite = flat.isfinite()
    count = finite.sum(0).clamp(min=1)
    # Relative to the first row, so that a constant entry, be it -1e9, varies by exactly 0.
    moved = (flat - flat[0].masked_fill(~finite[0], 0)).masked_fill(~finite, 0)
    variance = (moved - moved.sum(0) / count).square().masked_fill(~finite, 0).sum(0) / count
    variance = variance[variance.isfinite() & (variance > 0)]
    return math.sqrt(variance.mean().item()) if len(variance) else 0.0
