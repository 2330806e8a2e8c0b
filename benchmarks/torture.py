"""A training run under torture: kills, damaged files, a second writer, full disks, several processes.

    python benchmarks/torture.py --out docs/results/torture.json

A tiny run is trained once undisturbed. Then it is trained again, disturbed and resumed by the command that a user would
give, and its record is held against the first. An outcome is one of

* `same`: every loss, sample and score is that of the undisturbed run, to the last digit,
* `refused`: one sentence and status 2, and nothing changed,
* `different` or `traceback`: a fault of this package, of which the record names every case.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mu_sota.common import environment
from mu_sota.common.files import write_json

SETTINGS = {
    "vocab_size": 400,
    "num_hidden_layers": 2,
    "pair_table_rows": 64,
    "max_position_embeddings": 32,
    "window": 32,
    "stride": 32,
    "batch_size": 8,
    "num_epochs": 2,
    "warmup_steps": 20,
    "learning_rate": 0.01,
    "log_steps": 3,
    "checkpoint_minutes": 0.0005,
    "sample_tokens": 5,
    "trackers": "[]",
}
MU_SOTA = [sys.executable, "-m", "mu_sota"]


def flip_a_bit(file: Path) -> None:
    """In the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def make_a_folder(file: Path) -> None:
    """In its place."""
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit flipped": flip_a_bit,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a folder": make_a_folder,
}


class Torture:
    """The runs, in one folder, and what came of them.

    Args:
        folder: for all that is written.
    """

    def __init__(self, folder: Path) -> None:
        from pydoc_data.topics import topics

        self.folder = folder
        self.cases: dict[str, dict[str, str]] = {}
        (folder / "text.txt").write_text("\n".join(topics.values())[:20_000], encoding="utf-8")
        self.environ = os.environ | {"MU_SOTA_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        self.train("undisturbed")
        self.reference = self.rows("undisturbed")

    def command(self, out: str, *more: str) -> list[str]:
        """To train, or to go on."""
        settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
        return ["train", "--data", str(self.folder / "text.txt"), "--out", str(self.folder / out), *settings, *more]

    def train(self, out: str, *more: str, **named: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        command = [*MU_SOTA, *self.command(out, *more)]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, **named)

    def start(self, out: str, *more: str) -> subprocess.Popen[str]:
        """Run the command."""
        command = [*MU_SOTA, *self.command(out, *more)]
        return subprocess.Popen(
            command, env=self.environ, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def rows(self, out: str) -> list[dict[str, Any]]:
        """The record of a run, without what the clock gives."""
        clock = ("seconds", "tokens_per_second")
        lines = (self.folder / out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]

    def judge(self, kind: str, case: str, done: subprocess.CompletedProcess[str], out: str) -> None:
        """Note what came of a case."""
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            outcome = f"traceback, status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
        elif done.returncode == 2:
            outcome = "refused"
        else:
            outcome = "same" if self.rows(out) == self.reference else "different"
        self.cases.setdefault(kind, {})[case] = outcome

    def kills(self, number: int, chosen: random.Random) -> None:
        """Runs that are killed again and again, each time at any moment after a step or two, until they are done."""
        for name in tqdm(range(number), desc="runs killed again and again"):
            out, kills = f"killed-{name}", 0
            while True:
                process = self.start(out, *(["--resume"] if kills else []))
                begun = self.checkpoints(out)
                while self.checkpoints(out) == begun and process.poll() is None:
                    time.sleep(0.01)
                try:
                    process.wait(timeout=chosen.uniform(0, 0.6))
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
            self.judge("killed again and again", f"{kills} kills", self.train(out, "--resume"), out)

    def checkpoints(self, out: str) -> set[str]:
        """The complete ones of a run."""
        return {file.parent.name for file in self.folder.glob(f"{out}/checkpoint-*/manifest.json")}

    def half_way(self) -> str:
        """A run killed in the middle, with two checkpoints."""
        process = self.start("half-way")
        while len(self.checkpoints("half-way")) < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return "half-way"

    def damages(self) -> None:
        """Every file of the newest checkpoint and of the run, damaged in every way; then the run is resumed."""
        origin = self.folder / self.half_way()
        newest = max(origin.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        files = [f"{newest.name}/{file.name}" for file in sorted(newest.iterdir())]
        files += [file.name for file in sorted(origin.iterdir()) if file.is_file() and file.name[0] != "."]
        cases = [(file, damage) for file in files for damage in DAMAGES]
        for file, damage in tqdm(cases, desc="damaged files"):
            copy = self.folder / "damaged"
            shutil.copytree(origin, copy)
            DAMAGES[damage](copy / file)
            name = re.sub(r"\d+/", "N/", file)
            self.judge("damaged files", f"{name} {damage}", self.train("damaged", "--resume"), "damaged")
            shutil.rmtree(copy)

    def second_writers(self) -> None:
        """Three others start, all at once, in the folder of a run at work; it stands still, or it might end first."""
        first = self.start("shared")
        while not (self.folder / "shared" / ".lock.json").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        commands = [[*MU_SOTA, *self.command("shared", *more)] for more in ((), ("--resume",), ("--resume",))]
        others = [
            subprocess.Popen(command, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        for number, other in enumerate(others):
            _, errors = other.communicate()
            done = subprocess.CompletedProcess(commands[number], other.returncode, "", errors)
            self.judge("a second writer", f"number {number + 1}", done, "shared")
        first.send_signal(signal.SIGCONT)
        first.wait()
        self.judge("a second writer", "the first, afterwards", self.train("shared", "--resume"), "shared")

    def full_disks(self, chosen: random.Random) -> None:
        """The run's folder is on a small disk that fills up; then it gets room. Needs the right to mount one."""
        for number in tqdm(range(5), desc="full disks"):
            place = self.folder / f"disk-{number}"
            place.mkdir()
            size = chosen.randrange(100, 9000)
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)], capture_output=True, check=False
            )
            if mounted.returncode:
                self.cases["a full disk"] = {"not tried": "no right to mount a small disk here"}
                return
            try:
                done = self.train(f"disk-{number}/out")
                told = done.returncode == 2 and "full" in done.stderr and "Traceback" not in done.stderr
                subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
                outcome = "refused" if told else "same" if not done.returncode else f"traceback: {done.stderr[-200:]}"
                self.cases.setdefault("a full disk", {})[f"{size} kB"] = outcome
                out = f"disk-{number}/out"
                begun = (place / "out" / "run.json").exists()
                self.judge("a full disk", f"{size} kB, then room", self.train(out, *(["--resume"] * begun)), out)
            finally:
                subprocess.run(["umount", str(place)], check=True)

    def processes(self) -> None:
        """Two and four processes, without dropout, whose masks they draw each for itself; a worker that dies."""
        self.train("alone", "--set=dropout=0")
        expected = [row["loss"] for row in self.rows("alone") if row["kind"] == "step"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=2"]
        for number in (2, 4):
            out = f"by-{number}"
            command = [*torchrun, f"--nproc-per-node={number}", "-m", "mu_sota", *self.command(out, "--set=dropout=0")]
            process = subprocess.Popen(
                command, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            case = f"{number} processes"
            if number == 2:
                while not self.checkpoints(out):
                    time.sleep(0.01)
                workers = subprocess.run(
                    ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
                ).stdout.split()
                os.kill(int(workers[-1]), signal.SIGKILL)
                case += ", one killed: torchrun starts them again"
            process.wait()
            found = [row["loss"] for row in self.rows(out) if row["kind"] == "step"]
            close = len(found) == len(expected) and all(
                abs(one - other) < 1e-4 * other for one, other in zip(found, expected, strict=True)
            )
            self.cases.setdefault("several processes", {})[case] = "same to 4 digits" if close else "different"


def main() -> None:
    """Torture a run, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the record")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills and the sizes of disks")
    arguments = parser.parse_args()
    chosen = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Path(folder))
        torture.kills(3, chosen)
        torture.damages()
        torture.second_writers()
        torture.full_disks(chosen)
        torture.processes()
    counts = {
        kind: dict(Counter(outcome.partition(":")[0] for outcome in cases.values()))
        for kind, cases in torture.cases.items()
    }
    write_json(
        arguments.out,
        {
            "command": f"python benchmarks/torture.py --seed {arguments.seed}",
            "machine": environment.describe(),
            "counts": counts,
            "cases": torture.cases,
        },
    )
    print(json.dumps(counts, indent=2))
    faults = [case for cases in torture.cases.values() for case in cases.values() if case.startswith(("d", "t"))]
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
