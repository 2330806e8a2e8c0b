"""The random generators of the process: PyTorch's, Python's, NumPy's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, the caller's random states (PyTorch's, Python's, NumPy's) are as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  what others draw from is the global one
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def random_position(device: torch.device) -> int:
    """Where the global random generators stand: passes that drew other amounts of numbers stand elsewhere."""
    accelerator = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    words: Any = np.random.get_state()  # noqa: NPY002  what others draw from is the global one
    torch_state = torch.random.get_rng_state().numpy().tobytes()
    return hash((torch_state, accelerator, random.getstate(), words[1].tobytes(), words[2]))
