"""Puts a trained and inspected model into the package, its weights in bfloat16: what `mu-sota playground` opens.

    mu-sota train --preset pocket --out runs/pocket
    mu-sota inspect runs/pocket --labels data/probes
    python benchmarks/packaged_model.py runs/pocket --out docs/results/packaged-model.json

The record says what rounding costs on the run's validation split. Of the inspection, all but the map of a text is taken
along.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mu_sota.common import environment
from mu_sota.common.files import replacing, write_json
from mu_sota.data.corpus import load_corpus
from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.evaluation.metrics import evaluate
from mu_sota.saved.load_save import load_trained
from mu_sota.saved.packaged import PACKAGED_MODEL
from mu_sota.saved.run_record import (
    BEST_FOLDER,
    INSPECTION_FILE,
    INSPECTION_FOLDER,
    METRICS_FILE,
    RUN_FILE,
    inspection_of,
    metrics_rows,
    recorded,
)

_MOST_MEGABYTES = 2.5


def package(run: Path, out: Path) -> None:
    """Write the folder of a run anew, with what is needed to use and look into its model, and nothing else."""
    with replacing(out) as fresh:
        shutil.copytree(run / BEST_FOLDER, fresh / BEST_FOLDER)
        file = fresh / BEST_FOLDER / "model.safetensors"
        weights = load_file(file)
        save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, file, {"format": "pt"})
        size = file.stat().st_size / 1e6
        if size > _MOST_MEGABYTES:
            raise SystemExit(f"the weights have {size:.2f} MB, more than {_MOST_MEGABYTES}")
        rows = [row for row in metrics_rows(run / METRICS_FILE) if row["kind"] == "epoch"]
        (fresh / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        write_json(fresh / RUN_FILE, recorded(run))
        inspection = {key: value for key, value in inspection_of(run).items() if key != "map"}
        (fresh / INSPECTION_FOLDER).mkdir()
        text = json.dumps(_rounded(inspection | {"model": out.name}), ensure_ascii=False)
        (fresh / INSPECTION_FOLDER / INSPECTION_FILE).write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """The record with four digits after the point, which is more than its figures are good for."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Package, and compare the scores before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="--out of a training run, inspected")
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    arguments = parser.parse_args()
    package(arguments.run, PACKAGED_MODEL)
    record = recorded(arguments.run)
    corpus = load_corpus(record["data"], tokenizer=load_tokenizer(PACKAGED_MODEL / BEST_FOLDER))
    window = record["settings"]["window"]
    scores = {}
    for name, folder in (("as trained", arguments.run), ("as packaged", PACKAGED_MODEL)):
        model, _ = load_trained(folder)
        scores[name] = evaluate(model, corpus.validation, window=window, stride=window, batch_size=32).as_dict()
        print(f"{name}: validation loss {scores[name]['loss']:.5f}", flush=True)
    found = inspection_of(PACKAGED_MODEL)
    write_json(
        arguments.out,
        {
            "command": f"python benchmarks/packaged_model.py {arguments.run} --out {arguments.out}",
            "machine": environment.describe(),
            "trained": {key: record[key] for key in ("preset", "data", "data_fingerprint", "settings", "model")},
            "trained_on_commit": record["machine"]["commit"],
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "bytes": sum(file.stat().st_size for file in PACKAGED_MODEL.rglob("*") if file.is_file()),
            "bytes_of_weights": (PACKAGED_MODEL / BEST_FOLDER / "model.safetensors").stat().st_size,
            "validation": scores,
            "legibility": {key: found["legibility"][key] for key in ("legibility", "low", "high", "best_blocks")},
            "steering": found["steering"],
        },
    )


if __name__ == "__main__":
    main()
