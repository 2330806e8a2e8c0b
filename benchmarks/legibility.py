"""Legibility of several models, seed by seed: do blocks, or slices of a model without blocks, carry what names promise?

    python benchmarks/legibility.py data/wikitext-2 data/probes --out docs/results/legibility.json \
        MU=runs/compared/trainings/mu/seed-0/best,runs/compared/trainings/mu/seed-1/best \
        GPT-2=runs/compared/trainings/gpt2-flops/seed-0/best

All models must share a tokenizer, so that they are asked about the same tokens. Each is asked half-way through its
layers. The record is written after every model, and models that it has are not measured again.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mu_sota.common import environment
from mu_sota.common.files import read_json, write_json
from mu_sota.comparison.baselines import load
from mu_sota.comparison.statistics import summarise
from mu_sota.data.corpus import load_corpus
from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.inspection.block_states import word_states
from mu_sota.inspection.legibility import measure_legibility
from mu_sota.inspection.record import labelled_folder, tasks_of
from mu_sota.inspection.similarity import block_similarity
from mu_sota.model.blocks import BLOCKS, NUM_BLOCKS

NAMES = [block.name for block in BLOCKS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the text that the models were trained on")
    parser.add_argument("labels", type=Path, help="folder of labelled texts")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER,...", help="a model, one folder a seed")
    parser.add_argument("--window", type=int, default=128, help="tokens read at once")
    parser.add_argument("--out", type=Path, required=True, help="the record")
    arguments = parser.parse_args()
    parted = (model.partition("=") for model in arguments.models)
    folders: dict[str, list[str]] = {name: paths.split(",") for name, _, paths in parted}
    tokenizer = load_tokenizer(next(iter(folders.values()))[0])
    corpus = load_corpus(arguments.data, tokenizer=tokenizer)
    tasks = tasks_of(corpus)
    labelled = labelled_folder(arguments.labels)
    record = read_json(arguments.out, "give another --out") or {
        "command": "python benchmarks/legibility.py data/wikitext-2 data/probes MODELS --out legibility.json",
        "machine": environment.describe(),
        "data_fingerprint": corpus.fingerprint,
        "labels": labelled.source,
        "window": arguments.window,
        "models": {},
    }
    for name, paths in folders.items():
        seeds = record["models"].setdefault(name, {"seeds": []})["seeds"]
        for path in paths[len(seeds) :]:
            model: Any = load(Path(path))
            if load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
                parser.error(f"{path} has another tokenizer than the first model")
            layer = model.config.num_hidden_layers // 2
            states = word_states(
                model, tokenizer, labelled.documents, arguments.window, [layer], progress=_bar(f"{name}: reading")
            )
            found = measure_legibility(states, labelled.fitted, tasks, layer, progress=_bar(f"{name}: probes"))
            alike = block_similarity(states.states[0])
            one, other = alike.most_alike
            seeds.append(
                {
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "legibility": found.as_dict(),
                    "cka": alike.cka.tolist(),
                    "most_alike": [NAMES[one], NAMES[other], float(alike.cka[one, other])],
                }
            )
            write_json(arguments.out, record)
        shares = [seed["legibility"]["legibility"] for seed in seeds]
        record["models"][name]["summary"] = summarise(shares)._asdict()
        write_json(arguments.out, record)
    for name, model in record["models"].items():
        best = [f"{NUM_BLOCKS * seed['legibility']['legibility']:.0f} of {NUM_BLOCKS}" for seed in model["seeds"]]
        highest = max(seed["most_alike"][2] for seed in model["seeds"])
        print(f"{name:24} {', '.join(best)}; highest CKA of two blocks {highest:.2f}")


def _bar(title: str) -> Any:
    def bar(todo: Sequence[Any]) -> Iterable[Any]:
        return tqdm(todo, desc=title, ncols=80, leave=False)

    return bar


if __name__ == "__main__":
    main()
