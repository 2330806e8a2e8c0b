"""The random generators of the process: PyTorch's, Python's, NumPy's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global random generators at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  models may draw from the global one
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def random_state_hash(device: torch.device) -> int:
    """Differs after two passes that drew different amounts of random numbers."""
    accelerator = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    torch_state = torch.random.get_rng_state().numpy().tobytes()
    return hash((torch_state, accelerator, random.getstate(), numpy[1].tobytes(), numpy[2]))
