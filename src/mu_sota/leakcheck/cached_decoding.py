"""The check *cache*: decoding with the model's cache beside one pass over the same text.

Legend: B batch, V vocabulary.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList

from mu_sota.common.hooks import attached
from mu_sota.model.errors import InputError

from .passes import Comparison, Pass, Passes, Run


def decoded(passes: Passes) -> Iterator[Comparison]:
    """Decoding by the model's own `generate`, the known tokens forced one by one.

    Raises:
        InputError: the model has no `generate`, or uses no cache.
    """
    _require_cache(passes)
    length = passes.length
    for prompt in (1, length // 2):
        run = Run(partial(_decode, passes, prompt, length - prompt), (passes.rows, 1))
        # All steps; then the last alone, which `locate` can compare with the full pass.
        for first in (prompt, length - 1):
            yield passes.compare(
                Pass(passes.base, columns=slice(first - 1, length - 1)),
                Pass(run, columns=slice(first - prompt, None)),
                f"decoding with its cache after a prompt of {prompt} gives other predictions than one pass over the "
                f"whole text",
            )


def _require_cache(passes: Passes) -> None:
    model = passes.tested.model
    if not isinstance(model, GenerationMixin):
        raise InputError("the model has no generate method of transformers")
    widths: list[int] = []

    def note_width(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        widths.append(ids.shape[1] if isinstance(ids, Tensor) else 0)

    hook = passes.tested.roots[0].register_forward_pre_hook(note_width, with_kwargs=True)
    with attached([hook]), torch.no_grad():
        _decode(passes, 2, 2)
    if widths[-1] > 1:
        raise InputError("the model decodes without a cache: every step is a full pass")


def _decode(passes: Passes, prompt: int, steps: int) -> Tensor:
    """Logits [B, steps, V] of decoding with the cache after a prompt, the known tokens forced one by one."""

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        passes.counter.begin_pass()
        forced = torch.full_like(scores, -math.inf)
        return forced.scatter(1, passes.ids[:, ids.shape[1], None], 0.0)

    settings = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=int(passes.drawn[0]),
    )
    ids = passes.ids[:, :prompt]
    model: Any = passes.tested.model
    with passes.tested.state.mode(training=False):
        model.generation_config = GenerationConfig()  # its own stops early, for one
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([force]),
        )
    logits = torch.stack(output.logits, dim=1)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
