"""Legibility of several models, seed by seed: do blocks, or slices of a model without blocks, carry what names promise?

    python benchmarks/legibility.py data/wikitext-2 data/probes --out docs/results/legibility.json \
        MU=runs/compared/trainings/mu/seed-0/best,runs/compared/trainings/mu/seed-1/best \
        GPT-2=runs/compared/trainings/gpt2-flops/seed-0/best

All models must share a tokenizer, so that they are asked about the same tokens. Each is asked half-way through its
layers. The record is written after every model, and models that it has are not measured again. With --figures, the
matrix of each one's first seed is drawn, too: legibility-mu.svg, ...
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mu_sota.common import environment
from mu_sota.common.files import read_json, replacing, write_json
from mu_sota.comparison.baselines import load
from mu_sota.comparison.statistics import compare_losses, summarise
from mu_sota.data.corpus import load_corpus
from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.inspection import figures
from mu_sota.inspection.record import Progress, asked, labelled_folder, steering, tasks_of
from mu_sota.inspection.similarity import block_similarity
from mu_sota.model.blocks import BLOCKS, NUM_BLOCKS
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import best_epoch, loss_of, record_of

NAMES = [block.name for block in BLOCKS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the text that the models were trained on")
    parser.add_argument("labels", type=Path, help="folder of labelled texts")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER,...", help="a model, one folder a seed")
    parser.add_argument("--window", type=int, default=128, help="tokens read at once")
    parser.add_argument("--out", type=Path, required=True, help="the record")
    parser.add_argument("--figures", type=Path, help="folder for a picture of each model's first seed")
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
            progress = _bars(name)
            states, found = asked(model, tokenizer, labelled, tasks, arguments.window, layer, progress)
            alike = block_similarity(states.states[0])
            one, other = alike.most_alike
            run, epoch = record_of(Path(path)), best_epoch(Path(path))
            seeds.append(
                {
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "trained": {"model": run["model"], "settings": run["settings"]} if run else None,
                    "validation_loss": loss_of(epoch["validation"]) if epoch else None,
                    "legibility": found.as_dict(),
                    "cka": alike.cka.tolist(),
                    "most_alike": [NAMES[one], NAMES[other], float(alike.cka[one, other])],
                    "steering": steering(model, corpus, arguments.window, layer, progress)
                    if isinstance(model, MuForCausalLM)
                    else None,
                }
            )
            write_json(arguments.out, record)
        shares, losses = ([seed[key] for seed in seeds] for key in ("legibility", "validation_loss"))
        record["models"][name]["summary"] = summarise([each["legibility"] for each in shares])._asdict()
        if None not in losses:
            record["models"][name]["validation_loss"] = summarise(losses)._asdict()
            first = [seed["validation_loss"] for seed in next(iter(record["models"].values()))["seeds"]]
            if None not in first and len(first) == len(losses):
                record["models"][name]["loss_minus_that_of_the_first"] = compare_losses(losses, first)._asdict()
        write_json(arguments.out, record)
    if arguments.figures:
        blocks = [block._asdict() for block in BLOCKS]
        for name, model in record["models"].items():
            drawn = figures.legibility({"blocks": blocks, "legibility": model["seeds"][0]["legibility"]})
            with replacing(arguments.figures / f"legibility-{name.lower().replace(' ', '-')}.svg") as file:
                file.write_text(drawn.svg(), encoding="utf-8")
    for name, model in record["models"].items():
        best = [f"{NUM_BLOCKS * seed['legibility']['legibility']:.0f} of {NUM_BLOCKS}" for seed in model["seeds"]]
        highest = max(seed["most_alike"][2] for seed in model["seeds"])
        loss = model.get("validation_loss")
        print(
            f"{name:24} {', '.join(best)}; highest CKA of two blocks {highest:.2f}"
            + (f"; validation loss {loss['mean']:.4f}" if loss else "")
        )


def _bars(name: str) -> Progress:
    def bar(title: str, todo: Sequence[Any]) -> Iterable[Any]:
        return tqdm(todo, desc=f"{name}: {title}", ncols=80, leave=False)

    return bar


if __name__ == "__main__":
    main()
