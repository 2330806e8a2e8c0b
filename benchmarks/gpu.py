"""All that is to be known of mu-sota on a GPU, in calls of some minutes: what one leaves undone, the next does.

    make gpu-pack                                    # before, where there is a network
    python benchmarks/gpu.py --out docs/results/gpu  # on the machine with the GPU; nothing need be installed

Stages, in order of worth:

* right: does it compute the right thing? Against float64 on the CPU; cached decoding; leak check; the tests for CUDA.
* recipe: a training step of the preset mu-sota at 32 x 512 tokens, in every form; then its 5 epochs in the best form.
* beside: tokens a second beside GPT-2 and Llama of as many parameters.
* decoding: a cached token against a full pass, and against GPT-2.
* scaling: time and memory of a step against batch and length.
* research: the trainings of `gpu_research.yaml`, one after the other.

A stage is a process of its own with a time limit. It writes STAGE.json after each of its parts; parts that the record
of the same code on the same device holds are not done again. What is printed is in gpu.log too, and a table comes last.

With `--device cpu` all of it runs at tiny sizes: the test that nothing is misspelt.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

ROOT = Path(__file__).parents[1]
PACK = ROOT / "gpu-pack"
sys.path.insert(1, str(ROOT / "src"))
sys.path.append(str(PACK / "site"))  # last: what the machine has comes first

from gpu_stages.records import after_a_kill, read_record  # noqa: E402

STAGES = {"right": 130, "recipe": 330, "beside": 120, "decoding": 120, "scaling": 60, "research": 600}
"""The most seconds of each."""

_LEAST = 15  # with fewer seconds left, no stage begins
_TO_STOP = 8  # seconds in which a stage whose time is up may save what it has


def run_stages(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """One after the other, while there is time."""
    deadline = time.monotonic() + arguments.seconds
    for name, most in STAGES.items():
        if arguments.only in (None, name):
            run_stage(name, min(deadline, time.monotonic() + most), arguments, say)


def run_stage(name: str, end: float, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """A stage, again after its process died, as long as each process gets further than the one before."""
    path = arguments.out / f"{name}.json"
    kernels: dict[str, str] = {}
    while (left := end - time.monotonic()) >= _LEAST:
        say(f"--- {name}, for {left:.0f} s at most{', without our kernels' if kernels else ''}")
        before = read_record(path)
        command = [sys.executable, __file__, "--stage", name, "--out", str(arguments.out)]
        command += ["--device", arguments.device, "--data", arguments.data, "--seconds", f"{left:.0f}"]
        if run_process(command, left, say, kernels):
            return
        if read_record(path) == before:  # it died before it did anything: our kernels may be why, which it tries first
            if kernels:
                say(f"--- {name}: it cannot be begun")
                return
            kernels = {"MU_SOTA_KERNELS": "0"}
    say(f"--- {name}: no time is left")


def run_process(
    command: list[str], seconds: float, say: Callable[[str], None], more_environment: dict[str, str]
) -> bool:
    """Pass on what a process prints; stop it and its children after so many seconds. True unless it died by itself."""
    environment = os.environ | more_environment
    group = os.setpgrp  # process_group= came with Python 3.11
    with Popen(command, stdout=PIPE, stderr=STDOUT, text=True, env=environment, preexec_fn=group) as process:  # noqa: PLW1509
        assert process.stdout
        timers = [
            threading.Timer(seconds, process.terminate),
            threading.Timer(seconds + _TO_STOP, os.killpg, (process.pid, signal.SIGKILL)),
        ]
        for timer in timers:
            timer.start()
        for line in process.stdout:
            say(line.rstrip())
        process.wait()
        for timer in timers:
            timer.cancel()
    killed = process.returncode == -signal.SIGKILL
    if killed:
        after_a_kill(Path(command[command.index("--out") + 1], f"{command[command.index('--stage') + 1]}.json"))
    return killed or process.returncode == 0


def main() -> None:
    """Run what is asked for, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the records")
    parser.add_argument("--seconds", type=float, default=420, help="for everything together")
    parser.add_argument("--only", choices=STAGES, help="a single stage")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tiny sizes, to try the script")
    parser.add_argument("--data", default=str(PACK / "wikitext-2"), help="WikiText-2, or as mu-sota train takes it")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage:
        from gpu_stages.context import run_stage

        run_stage(arguments)
        return
    from gpu_stages.table import table

    with (arguments.out / "gpu.log").open("a", encoding="utf-8") as log:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        run_stages(arguments, say)
        say(table(arguments.out, STAGES))


if __name__ == "__main__":
    main()
