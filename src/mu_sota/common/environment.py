"""The machine: what a record says of it (versions, commit, hardware, peak memory), and its device and memory."""

import gc
import platform
import subprocess
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from mu_sota.model import kernels
from mu_sota.model.gpu import gpu_kernels_work

HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def describe() -> dict[str, Any]:
    """Versions, the package's commit where it runs from a checkout, and the machine."""
    packages = ("mu-sota", "torch", "transformers", "accelerate", "tokenizers")
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "kernels": _kernels(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def peak_memory() -> int:
    """Most bytes used so far: of the GPU's memory if there is a GPU, else of this process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def is_out_of_memory(error: Exception) -> bool:
    """True if the error is one that fewer sequences at once could have avoided."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def release_memory() -> None:
    """Free objects that only refer to each other, such as a trainer and its callbacks, and their accelerator memory."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """PyTorch's mixed precision on a device; for fp32 none."""
    half = HALF_PRECISION.get(precision)
    return torch.autocast(device.type, half) if half else nullcontext()


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


def _kernels() -> str:
    if torch.cuda.is_available():
        return "Triton" if gpu_kernels_work(torch.cuda.current_device(), torch.bfloat16) else "PyTorch"
    return "compiled" if kernels.library() else "PyTorch"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
