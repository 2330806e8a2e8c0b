"""A padded text beside the same text alone.

Legend: B batch, T time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mu_sota.model.errors import InputError

from .passes import Comparison, Pass, Passes, Run


def padded(passes: Passes) -> Iterator[Comparison]:
    """Padding on the right and left, with its `attention_mask`, of several rows and of one.

    Raises:
        InputError: the model takes no `attention_mask`.
    """
    if not passes.tested.takes("attention_mask"):
        raise InputError("the model takes no attention_mask")
    yield Comparison(
        Pass(passes.base),
        Pass(passes.run(passes.ids, attention_mask=torch.ones_like(passes.ids))),
        "an attention_mask of ones changes what it predicts",
        passes.scale,
    )
    width = passes.length
    # Rows of several lengths, and one row alone: some models mask padding only in batches.
    for kept in ([width - 1 - (row * width) // (2 * passes.rows) for row in range(passes.rows)], [width // 2]):
        for side in ("right", "left"):
            places = [slice(count) if side == "right" else slice(width - count, width) for count in kept]
            run = _run_padded(passes, places)
            for row, (count, place) in enumerate(zip(kept, places, strict=True)):
                one = slice(row, row + 1)
                ids = passes.ids[one, :count]
                yield Comparison(
                    Pass(passes.run(ids, **_positions(passes, torch.ones_like(ids)))),
                    Pass(run, one, place),
                    f"{width - count} tokens of padding on the {side}, with their attention_mask, change what it "
                    f"predicts from the {count} real ones{' of a single row' if len(kept) == 1 else ''}",
                    passes.scale,
                )


def _run_padded(passes: Passes, places: list[slice]) -> Run:
    """Row r of the ids, as much as place r holds, put there; padding elsewhere."""
    pad = passes.tested.pad_id
    if pad is None or pad >= passes.tested.vocab_size:
        pad = int(passes.drawn[0])
    ids = torch.full((len(places), passes.length), pad, device=passes.tested.device)
    mask = torch.zeros_like(ids)
    for row, place in enumerate(places):
        ids[row, place] = passes.ids[row, : place.stop - (place.start or 0)]
        mask[row, place] = 1
    return passes.run(ids, attention_mask=mask, **_positions(passes, mask))


def _positions(passes: Passes, mask: Tensor) -> dict[str, Any]:
    """Where the model takes them: counted from the first real token, as `generate` gives them."""
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if passes.tested.takes("position_ids") else {}
