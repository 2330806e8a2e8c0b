"""Does a language model see the token it is asked to predict? Checks on any function from token ids to logits.

Legend: B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError

LogitsFunction = Callable[[Tensor], Tensor]

RELATIVE_TOLERANCE = 1e-4
"""Largest change let pass, in standard deviations of the logits. Float32 rounding of one sum taken in another order is
about 1e-6 of it; the leaks this package was built to exclude move logits by 1e-2 to 1."""


class Finding(NamedTuple):
    """One way in which logits moved that should not have."""

    check: str
    change: float
    tolerance: float
    meaning: str


class LeakError(InputError):
    """The model sees what it must not see."""


def assert_causal(model: LogitsFunction, vocab_size: int, length: int, device: torch.device | str = "cpu") -> None:
    """Raise unless the logits at a position depend on the tokens up to it, of its own row, and on nothing else.

    Args:
        model: deterministic function from ids [B, T] to logits [B, T, V].
        vocab_size: ids are drawn below it.
        length: longest sequence tried.
        device: where the ids are made.

    Raises:
        LeakError: names the check that failed, by how much, and what it means.
    """
    findings = find_leaks(model, vocab_size, length, device)
    if findings:
        first = findings[0]
        raise LeakError(
            f"the model is not causal, so its perplexity would mean nothing: {first.meaning} "
            f"(check '{first.check}': logits moved by {first.change:.2g}, tolerance {first.tolerance:.1g})"
        )


@torch.no_grad()
def find_leaks(
    model: LogitsFunction, vocab_size: int, length: int, device: torch.device | str = "cpu", batch: int = 4
) -> list[Finding]:
    """All checks that fail; see `assert_causal`. Does not touch the global random state."""
    generator = torch.Generator().manual_seed(0)

    def random_ids(rows: int, columns: int) -> Tensor:
        return torch.randint(vocab_size, (rows, columns), generator=generator).to(device)

    ids = random_ids(batch, length)
    logits = model(ids).float()
    tolerance = RELATIVE_TOLERANCE * max(logits.std().item(), 1e-6)
    findings = []

    def compare(check: str, ours: Tensor, theirs: Tensor, meaning: str) -> None:
        change = (ours - theirs).abs().max().item()
        if not change <= tolerance:  # NaN fails too
            findings.append(Finding(check, change, tolerance, meaning))

    for cut in sorted({1, length // 3, length // 2, length - 1} - {0}):
        future = torch.cat([ids[:, :cut], random_ids(batch, length - cut)], dim=1)
        compare(
            "future",
            model(future).float()[:, :cut],
            logits[:, :cut],
            f"tokens from position {cut} on change what it predicts before them",
        )
        compare(
            "prefix",
            model(ids[:, :cut]).float(),
            logits[:, :cut],
            f"the first {cut} tokens alone give other predictions than the same tokens at the start of a longer text",
        )
    for row in range(batch):
        compare(
            "batch",
            model(ids[row : row + 1]).float(),
            logits[row : row + 1],
            f"row {row} alone gives other predictions than the same row among others",
        )
    return findings
