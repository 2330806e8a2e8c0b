"""`mu-sota inspect`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mu_sota.data.sources import require_source
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import INSPECTION_FOLDER, inspection_folder, model_folder
from mu_sota.saved.trained_on import trained_on

from .app import DATA, ModelFolder, given_or_packaged, load_libraries, path_of, say


def inspect(
    folder: ModelFolder = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="PATH",
            help="folder for the page, its figures and the record. Default: inspection/ in DIR; without DIR, here",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA}. Default: what the run was trained on")] = None,
    text: Annotated[
        str | None, typer.Option(help="a text to map. Default: the beginning of the validation split")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="PATH",
            help="folder of labelled texts, .conllu and .conll; without, fewer questions can be asked",
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="after which to probe the blocks. Default: half-way")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="tokens seen at once. Default: as in the run")] = None,
) -> None:
    """What each block holds and does: probes for what it is named for, its effect, its likeness to others, a map.

    A GPT-2 or a Llama that `mu-sota compare` trained is cut into 16 slices, the baseline of what a slice without a name
    holds.
    """
    out = out or (Path(INSPECTION_FOLDER) if folder is None else inspection_folder(folder))
    folder = given_or_packaged(folder)
    best = model_folder(folder)
    trained = trained_on(folder)
    data = trained.data if data is None else data
    if data is None:
        raise InputError(f"{folder} has no run.json that says what it was trained on; name a text with --data")
    require_source(data)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out is {out}, which is a file; give a folder")
    load_libraries()
    import torch
    from tqdm import tqdm

    from mu_sota.common import environment
    from mu_sota.common.bars import seconds_between_drawings
    from mu_sota.common.text import timestamp
    from mu_sota.comparison.baselines import load
    from mu_sota.data.corpus import load_corpus
    from mu_sota.data.options import TextOptions
    from mu_sota.data.tokenizer import load_tokenizer
    from mu_sota.inspection import report
    from mu_sota.inspection.record import inspect_model, labelled_folder, unlabelled

    options = TextOptions.of(trained.settings.model_dump())
    corpus = load_corpus(data, tokenizer=load_tokenizer(best), options=options)
    model = load(best)
    torch.nn.Module.to(model, environment.default_device())
    layers = model.config.num_hidden_layers
    positions = model.config.max_position_embeddings
    window = window or min(positions, trained.settings.window or positions)
    layer = layers // 2 if layer is None else layer
    if layer > layers:
        raise InputError(
            f"--layer is {layer}, but the model has {layers} layers; give 0, before the first, to {layers}"
        )
    if window > positions:
        raise InputError(f"--window is {window}, but the model has {positions} positions; give at most those")

    def progress(title: str, todo: Sequence[Any]) -> Iterable[Any]:
        return tqdm(todo, desc=title, ncols=80, mininterval=seconds_between_drawings())

    labelled = labelled_folder(labels) if labels else unlabelled(corpus)
    grounded = trained.settings.grounding > 0
    found = inspect_model(model, corpus, labelled, text, window, layer, grounded, progress)
    report.write(
        {
            "model": str(folder),
            "data": data,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "machine": environment.describe(),
            "finished": timestamp(),
        }
        | found,
        out,
    )
    say(report.summary(found))
    say(f"\n{out}: index.html (opens in any browser), inspection.json, figures/")
