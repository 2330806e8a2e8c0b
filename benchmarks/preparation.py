"""Preparing much text: time, memory, a kill in the middle, and the second start.

    python benchmarks/preparation.py --megabytes 2000 --out docs/results/preparation.json

The text is made up: passages of 20 words of Python's language reference, drawn by chance, a line each; a quarter of it
is one document, the rest has documents of all sizes, each a file. `mu-sota prepare` is run as a user runs it, in a
process of its own.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from subprocess import DEVNULL, Popen, check_output

import numpy as np
import psutil

from mu_sota.common import environment
from mu_sota.common.files import write_json


def make_text(folder: Path, megabytes: int) -> int:
    """Write the text; its bytes."""
    from pydoc_data.topics import topics

    generator = np.random.default_rng(0)
    words = " ".join(topics.values()).split()
    written = 0

    def document(n_lines: int) -> str:
        starts = generator.integers(0, len(words) - 20, n_lines)
        return "\n".join(" ".join(words[start : start + 20]) for start in starts) + "\n"

    with (folder / "long.txt").open("w", encoding="utf-8") as file:
        while written < megabytes * 250_000:
            written += file.write(document(5000))
    number = 0
    while written < megabytes * 1_000_000:
        with (folder / f"part{number:03}.txt").open("w", encoding="utf-8") as file:
            written += file.write(document(int(generator.integers(3, 300))))
        number += 1
    return written


def run(command: list[str], environ: dict[str, str], kill_after: float | None = None) -> dict[str, float]:
    """Run a command; its seconds and peak resident memory."""
    start, peak = time.monotonic(), 0
    with Popen(command, env=environ, stdout=DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            if kill_after and time.monotonic() - start > kill_after:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
    if process.returncode and not kill_after:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return {"seconds": time.monotonic() - start, "peak_memory_gib": peak / 2**30}


def main() -> None:
    """Prepare the text in one go; then again, killed half-way; then once more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="the record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "text").mkdir()
        n_bytes = make_text(folder / "text", arguments.megabytes)

        def prepare(cache: str, out: str, kill_after: float | None = None) -> dict[str, float]:
            command = [sys.executable, "-m", "mu_sota", "prepare", "--data", str(folder / "text")]
            environ = os.environ | {"MU_SOTA_CACHE": str(folder / cache)}
            return run([*command, "--out", str(folder / out)], environ, kill_after)

        at_once = prepare("one", "first")
        killed = prepare("two", "none", kill_after=0.6 * at_once["seconds"])
        resumed = prepare("two", "second")
        loading = (
            "import sys, time; from mu_sota.data import load_corpus; start = time.monotonic(); "
            f"load_corpus({str(folder / 'text')!r}, vocab_size=4096); print(time.monotonic() - start)"
        )
        environ = os.environ | {"MU_SOTA_CACHE": str(folder / "one")}
        loaded = check_output([sys.executable, "-c", loading], env=environ, text=True)
        same = all(
            (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()
            for name in ("train.npy", "validation.npy", "test.npy", "mu_sota_tokenizer.json")
        )
        meta = json.loads((folder / "first" / "meta.json").read_text())
    splits = {name: meta[name] for name in ("train", "validation", "test")}
    record = {
        "command": f"python benchmarks/preparation.py --megabytes {arguments.megabytes}",
        "machine": environment.describe(),
        "bytes": n_bytes,
        "at_once": at_once | {"megabytes_a_second": n_bytes / 1e6 / at_once["seconds"]},
        "killed_after": killed,
        "gone_on_with": resumed,
        "same_files_as_at_once": same,
        "second_start_seconds": float(loaded),
        "splits": splits,
    }
    write_json(arguments.out, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
