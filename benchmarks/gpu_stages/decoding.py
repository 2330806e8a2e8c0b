"""A cached token against a full pass, and against GPT-2 of as many parameters."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from side_by_side import median_ratio

from .context import Context
from .steps import in_turn, new_model, seconds_of, sizes


def run(context: Context) -> None:
    """With a growing cache, and with one of a fixed size, whose step is compiled by `generate`."""
    context.part("1 at once", partial(a_token, context, 1), least=15)
    context.part("generate, static cache, mu", partial(generating, context, "static", "mu"), least=45)
    context.part("32 at once", partial(a_token, context, 32), least=15)
    for name in ("mu", "gpt2"):
        context.part(f"generate, dynamic cache, {name}", partial(generating, context, "dynamic", name), least=15)
    context.part("generate, static cache, gpt2", partial(generating, context, "static", "gpt2"), least=45)


@torch.no_grad()
def a_token(context: Context, texts: int) -> dict[str, Any]:
    """The last token of 512 with a cache, against all 512 at once; each of them without waiting between tokens."""
    texts, length = min(texts, 2) if context.tiny else texts, sizes(context)[1]
    ours, theirs = (new_model(context, name).eval() for name in ("mu", "gpt2"))
    ids = torch.randint(4, ours.config.vocab_size, (texts, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(context.device)
    tokens = 8

    def stepping(model: Any) -> Callable[[], None]:
        cache = model(ids[:, :-tokens], use_cache=True, logits_to_keep=1).past_key_values

        def run() -> None:
            for token in ids[:, -tokens:].split(1, dim=1):
                model(token, past_key_values=cache, use_cache=True)
            cache.crop(-tokens)

        return run

    with torch.autocast(context.device.type, context.half) if not context.tiny else nullcontext():
        functions = {"cached": stepping(ours), "gpt2 cached": stepping(theirs)}
        functions["full"] = lambda: ours(ids, logits_to_keep=1)
        functions["gpt2 full"] = lambda: theirs(ids, logits_to_keep=1)
        taken = in_turn(context, functions, budget=2)
    for name in ("cached", "gpt2 cached"):
        taken[name] = [seconds / tokens for seconds in taken[name]]
    return {
        "full_over_cached": median_ratio(taken["full"], taken["cached"]),
        "gpt2_over_mu_cached": median_ratio(taken["gpt2 cached"], taken["cached"]),
        "ms_a_cached_token": 1e3 * statistics.median(taken["cached"]),
        "seconds": taken,
    }


@torch.no_grad()
def generating(context: Context, cache: str, name: str) -> dict[str, Any]:
    """`generate`: new tokens a second after a prompt; on a GPU it compiles the step of a static cache."""
    torch.compiler.reset()
    length = sizes(context)[1]
    new = length // 4
    model = new_model(context, name).eval()
    ids = torch.randint(4, model.config.vocab_size, (1, length), device=context.device)
    prompt = ids[:, :-new]
    how: dict[str, Any] = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    if cache == "static":
        how["cache_implementation"] = "static"
    attended = torch.ones_like(prompt)
    taken = seconds_of(context, lambda: model.generate(prompt, attention_mask=attended, **how), budget=4)
    full = seconds_of(context, lambda: model(ids, logits_to_keep=1), budget=1)["median"]
    return {
        "tokens_a_second": new / taken["median"],
        "first_call_seconds": taken["first"],
        "full_over_a_token": full * new / taken["median"],
    }
