"""Does the device compute the right thing?

Legend: B batch, T time, L layers, N = 16 blocks.
"""

import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import mu
from torch import Tensor

from mu_sota.causality import check
from mu_sota.model.backend import plain_pytorch
from mu_sota.model.presets import FORM

from .context import Context
from .steps import HOW, TINY, new_model

_SCALE = 2.0**12  # of the loss in float16, as a GradScaler scales it
_ROOT = Path(__file__).parents[2]


def run(context: Context) -> None:
    """The tests for CUDA first, then numbers, decoding and leaks."""
    context.part("tests for CUDA", partial(tests, context), least=25)
    length = 32 if context.tiny else 512
    sizes = TINY if context.tiny else {"vocab_size": 2000}
    ids = torch.randint(4, sizes["vocab_size"], (2, length), generator=torch.Generator().manual_seed(0))
    masks = {"without padding": None, "with padding": _padding(length)}
    new_form = FORM | {"pair_table_rows": 1000, "block_inputs": "token"}
    for form, fields in {
        "": {},
        "new form, ": new_form,
        "blocks fed by name, ": new_form | {"block_inputs": "by_name"},
    }.items():
        of_form = sizes | fields
        exact = mu(dropout=0.0, **of_form).double()
        for padding, mask in masks.items():
            with plain_pytorch():
                expected = results(exact, ids, mask)
            for how in HOW:
                for precision in (torch.float32, torch.bfloat16, torch.float16):
                    name = f"{form}{_name(precision)}, {how}, {padding}"
                    context.part(name, partial(errors, context, of_form, ids, mask, expected, how, precision))
    for precision in (torch.float32, context.half):
        context.part(f"cached decoding in {_name(precision)}", partial(cached_decoding, context, precision, sizes))
    context.part("leak check", partial(leaks, context, sizes), least=15)


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def errors(
    context: Context,
    sizes: dict[str, Any],
    ids: Tensor,
    mask: Tensor | None,
    expected: dict[str, list[Tensor]],
    how: str,
    precision: torch.dtype,
) -> dict[str, Any]:
    """Relative errors of everything in `results`, in float32 or under autocast."""
    model = new_model(context, dropout=0.0, **sizes)
    with HOW[how]():
        found = results(model, ids, mask, None if precision == torch.float32 else precision)
    return {f"error_of_{name}": relative_error(found[name], expected[name]) for name in expected}


def _padding(length: int) -> Tensor:
    """The first text padded on the left by a third, the second on the right by a fifth."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    mask[1, length - length // 5 :] = 0
    return mask


def results(model: Any, ids: Tensor, mask: Tensor | None, half: torch.dtype | None = None) -> dict[str, list[Tensor]]:
    """Logits and loss, entropies and sensitivities of every layer, and gradients by all weights; real tokens alone."""
    device = model.device
    ids, mask = ids.to(device), None if mask is None else mask.to(device)
    model.train()
    scale = _SCALE if half == torch.float16 else 1.0
    with torch.autocast(device.type, half) if half else nullcontext():
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    (loss * scale).backward()
    gradients = [weight.grad / scale for weight in model.parameters()]
    model.zero_grad()
    with torch.no_grad(), torch.autocast(device.type, half) if half else nullcontext():
        outputs = model(
            input_ids=ids, attention_mask=mask, skip_logits=False, output_sensitivities=True, output_entropies=True
        )
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return {
        "loss": [loss.detach()],
        "logits": [outputs.logits[real]],
        "entropies": [entropy[real] for entropy in outputs.entropies],
        "sensitivities": [sensitivity[real] for sensitivity in outputs.sensitivities],
        "gradients": gradients,
    }


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of ||found - expected|| / ||expected||; NaN passes nothing."""
    errors = []
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.detach().cpu().double(), theirs.detach().double()
        errors.append(float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)))
    return max(errors, key=lambda error: error if error == error else float("inf"))


@torch.no_grad()
def cached_decoding(context: Context, precision: torch.dtype, sizes: dict[str, Any]) -> dict[str, Any]:
    """Logits of the last tokens one by one with a cache, against those of the full pass."""
    model = new_model(context, **sizes).to(precision).eval()
    length = 32 if context.tiny else 512
    last = length // 8
    ids = torch.randint(4, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    ids = ids.to(context.device)
    full = model(ids).logits[:, -last:].double()
    cache = model(ids[:, :-last], use_cache=True).past_key_values
    steps = [model(token, past_key_values=cache, use_cache=True).logits for token in ids[:, -last:].split(1, dim=1)]
    cached = torch.cat(steps, dim=1).double()
    return {
        "error_of_logits": float((cached - full).norm() / full.norm()),
        "same_top_token": float((cached.argmax(-1) == full.argmax(-1)).double().mean()),
    }


def leaks(context: Context, sizes: dict[str, Any]) -> dict[str, Any]:
    """The leak check as `mu-sota train` makes it, on the device."""
    report = check(new_model(context, **sizes))
    return {"summary": report.summary(), "clean": report.clean, "report": report.as_dict()}


def tests(context: Context) -> dict[str, Any]:
    """The tests that need a GPU; the machine's own plugins and packages may warn."""
    from gpu import PACK

    code = f"import sys; sys.path.append({str(PACK / 'site')!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-m", "cuda", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    command = [sys.executable, "-c", code, *options, "tests/model", "tests/training"]
    paths = os.pathsep.join(filter(None, [str(_ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    most = max(context.left - 3, 1)
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=_ROOT, env=environment, timeout=most
    )
    lines = done.stdout.strip().splitlines()
    return {"status": done.returncode, "summary": (lines or ["nothing was printed"])[-1], "output": lines[-60:]}
