"""The check *padding*: a padded text beside the same text alone.

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
    yield passes.compare(
        Pass(passes.base),
        Pass(passes.run(passes.ids, attention_mask=torch.ones_like(passes.ids))),
        "an attention_mask of ones changes what it predicts",
    )
    width = passes.length
    # Rows of several lengths, and one row alone: some models mask padding only in batches.
    for lengths in ([width - 1 - (row * width) // (2 * passes.rows) for row in range(passes.rows)], [width // 2]):
        for side in ("right", "left"):
            spans = [slice(count) if side == "right" else slice(width - count, width) for count in lengths]
            run = _run_padded(passes, spans)
            for row, (count, span) in enumerate(zip(lengths, spans, strict=True)):
                one = slice(row, row + 1)
                ids = passes.ids[one, :count]
                yield passes.compare(
                    Pass(passes.run(ids, **_positions(passes, torch.ones_like(ids)))),
                    Pass(run, one, span),
                    f"{width - count} tokens of padding on the {side}, with their attention_mask, change what it "
                    f"predicts from the {count} real ones{' of a single row' if len(lengths) == 1 else ''}",
                )


def _run_padded(passes: Passes, spans: list[slice]) -> Run:
    """Every row holds the beginning of its text in its span, and padding elsewhere."""
    pad = passes.tested.pad_id
    if pad is None or pad >= passes.tested.vocab_size:
        pad = int(passes.drawn[0])
    ids = torch.full((len(spans), passes.length), pad, device=passes.tested.device)
    mask = torch.zeros_like(ids)
    for row, span in enumerate(spans):
        ids[row, span] = passes.ids[row, : span.stop - (span.start or 0)]
        mask[row, span] = 1
    return passes.run(ids, attention_mask=mask, **_positions(passes, mask))


def _positions(passes: Passes, mask: Tensor) -> dict[str, Any]:
    """`position_ids`, if the model takes them: counted from the first real token, as `generate` counts them."""
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if passes.tested.takes("position_ids") else {}
