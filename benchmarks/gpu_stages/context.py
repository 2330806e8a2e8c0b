"""What a stage is given: the device, the sizes, the time that is left, and a record that is written part by part."""

import argparse
import hashlib
import signal
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.training import Interrupted

from .records import CUT_OFF, read_record, set_aside

_ROOT = Path(__file__).parents[2]


class Context:
    """One stage on one device.

    Args:
        name: of the stage.
        out: folder of the records.
        device: cuda, or cpu for tiny sizes.
        seconds: for the stage.
        data: as `mu-sota train` takes it.

    Attributes:
        tiny: sizes for a CPU, which show that the stage runs.
        half: the precision of training: float16 on a T4 or P100, else bfloat16.
    """

    def __init__(self, name: str, out: Path, device: str, seconds: float, data: str) -> None:
        self.out, self.data, self.tiny = out, data, device == "cpu"
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        supported = self.tiny or torch.cuda.is_bf16_supported(including_emulation=False)
        self.half = torch.bfloat16 if supported else torch.float16
        self.started, self.seconds = time.monotonic(), seconds
        self.path = out / f"{name}.json"
        identity = {"stage": name, "device": self.device_name, "code": _code_digest(), "data": Path(data).name}
        self.record = read_record(self.path)
        if {key: self.record.get(key) for key in identity} != identity:
            if self.record:
                set_aside(self.path, self.record)
            self.record = {**identity, "parts": {}}
        self.record["command"] = f"python benchmarks/gpu.py --out {out} --only {name}"
        self.record["machine"] = environment.describe() | {"memory_of_gpu_gib": self.memory_gib}
        self.record["commit_of_pack"] = read_record(_ROOT / "gpu-pack" / "pack.json").get("commit")
        self.synchronize()  # raises if our kernels, checked in `describe`, have left CUDA broken: before any part
        self.parts: dict[str, Any] = self.record["parts"]
        # A part that was begun and left no result has ended the process, as an error of CUDA does.
        if begun := self.record.pop("begun", None):
            self.parts[begun] = {"error": "the process ended within this part"}

    @property
    def device_name(self) -> str:
        """As PyTorch has it, or `cpu, tiny sizes`."""
        return torch.cuda.get_device_name(0) if self.device.type == "cuda" else "cpu, tiny sizes"

    @property
    def memory_gib(self) -> float | None:
        """Of the GPU."""
        if self.device.type != "cuda":
            return None
        return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)

    @property
    def left(self) -> float:
        """Seconds that are left for the stage."""
        return self.seconds - (time.monotonic() - self.started)

    def part(self, name: str, function: Callable[[], dict[str, Any]], least: float = 5) -> dict[str, Any]:
        """The figures of a part of the stage: from the record, or of this call, which writes them.

        What a part raises becomes its `error`; the others go on. With fewer than `least` seconds left, it is left out.
        """
        done = self.parts.get(name)
        if done is not None and "left_out" not in done:
            return done
        if self.left < least:
            self.parts[name] = {"left_out": f"{self.left:.0f} s were left"}
            self._write()
            return self.parts[name]
        self.record["begun"] = name
        self._write()
        start = time.monotonic()
        try:
            found = function()
        except (TimeIsUp, Interrupted):
            del self.record["begun"]
            self.parts[name] = CUT_OFF
            self._write()
            print(f"{name}: cut off", flush=True)
            raise SystemExit from None
        except Exception as error:  # whatever it is, the other parts are wanted
            traceback.print_exc()
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        del self.record["begun"]
        kernels = self.record["machine"]["kernels"]  # the device's, unless this process goes without
        self.parts[name] = found | {"seconds_in_all": round(time.monotonic() - start, 1), "kernels_here": kernels}
        self._write()
        print(f"{name}: {_short(found)} ({self.parts[name]['seconds_in_all']} s)", flush=True)
        self.synchronize()  # raises if the part has left CUDA broken: the other parts then get a new process
        environment.release_memory()
        return found

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _write(self) -> None:
        write_json(self.path, self.record)


class TimeIsUp(BaseException):
    """The stage was told to stop."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeIsUp


def run_stage(arguments: argparse.Namespace) -> None:
    """The stage that the options name, in this process."""
    signal.signal(signal.SIGTERM, _stop)
    context = Context(arguments.stage, arguments.out, arguments.device, arguments.seconds, arguments.data)
    import_module(f"gpu_stages.{arguments.stage}").run(context)


def _code_digest() -> str:
    """What changes with the code that is measured: a checkout without .git has no commit."""
    files = [file for folder in ("src", "benchmarks/gpu_stages") for file in (_ROOT / folder).rglob("*")]
    texts = sorted(file for file in files if file.suffix in (".py", ".cpp"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in texts)).hexdigest()[:16]


def _short(figures: dict[str, Any]) -> str:
    """The plain numbers and words among the figures."""
    shown = {key: value for key, value in figures.items() if isinstance(value, str | int | float | bool)}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )
