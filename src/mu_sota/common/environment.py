"""What a record says of where it was made: versions, commit, hardware, peak memory; and what to do when it is short."""

import gc
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from mu_sota.model import kernels


def describe() -> dict[str, Any]:
    """Versions, the package's commit where it runs from a checkout, and the machine."""
    packages = ("mu-sota", "torch", "transformers", "accelerate", "tokenizers")
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "kernels": "compiled" if kernels.library() else "PyTorch",
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def peak_memory() -> int:
    """Bytes: of the GPU's memory where one is used, else the most this process has had resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer sequences at once could have avoided the error."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def release_memory() -> None:
    """Let go of models that only refer to each other any more, and of the accelerator's memory that they held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def version(name: str) -> str | None:
    """Of an installed package, or None."""
    try:
        return metadata.version(name)
    except ModuleNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, `-dirty` when files differ from it; None for an installed package."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
