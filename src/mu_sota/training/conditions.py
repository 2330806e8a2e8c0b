"""Under what a run trains: what may change its losses in their last digits when it is gone on with elsewhere."""

from typing import Any

import torch

from mu_sota.common import environment

_MASKS = ("micro_batch_size", "processes")  # by which dropout draws other masks


def conditions(processes: int, micro_batch_size: int, precision: str, compiled: str) -> dict[str, Any]:
    """The machine and the software, and how a batch is divided.

    Args:
        processes: that train together.
        micro_batch_size: sequences at once in each.
        precision: fp32, bf16 or fp16.
        compiled: the setting `compile`.
    """
    machine = environment.describe()
    return {
        **machine["versions"],
        **{name: machine[name] for name in ("commit", "processor", "gpus", "kernels", "threads")},
        "processes": processes,
        "micro_batch_size": micro_batch_size,
        "precision": precision,
        "compile": compiled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def what_differs(then: dict[str, Any], now: dict[str, Any], dropout: float) -> str:
    """A line on what is other than before, or nothing."""
    different = [name for name in now if name in then and then[name] != now[name]]
    if not different:
        return ""
    named = "; ".join(f"{name} {_shown(now[name])}, not {_shown(then[name])}" for name in different)
    masks = ", and dropout draws other masks" if dropout and set(different) & set(_MASKS) else ""
    return f"Other than before: {named}. So losses may differ in their last digits{masks}."


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
