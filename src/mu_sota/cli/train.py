"""`mu-sota train`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mu_sota.common.files import read_json
from mu_sota.common.outside import in_one_sentence
from mu_sota.data.sources import require_source
from mu_sota.model.errors import InputError
from mu_sota.model.presets import MODEL_PRESETS
from mu_sota.saved.run_record import BEST_FOLDER, RUN_FILE, model_folder, refuse_existing_run, resumable
from mu_sota.settings.load import configure, merge_settings, parse_assignments
from mu_sota.settings.presets import DEFAULT_PRESET, MODEL_KEYS, RUN_PRESETS
from mu_sota.settings.run import RunSettings, Text

from .app import DATA, PRESETS, TEXT_SETTINGS, TOKENIZER, Assignments, SettingsFile, load_libraries, path_of


def train(
    out: Annotated[
        Path,
        typer.Option(parser=path_of, metavar="PATH", help="folder for the model, its tokenizer and the run's record"),
    ],
    preset: Annotated[str | None, typer.Option(help=f"{PRESETS}. Default: {DEFAULT_PRESET}")] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA}. Default: pydocs")] = None,
    epochs: Annotated[int | None, typer.Option(help="same as --set num_epochs=N")] = None,
    max_steps: Annotated[int | None, typer.Option(help="same as --set max_steps=N")] = None,
    seed: Annotated[int | None, typer.Option(help="same as --set seed=N")] = None,
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER)] = None,
    assignments: Assignments = None,
    config: SettingsFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the run in --out; with more --epochs, make it longer")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="DIR", help="begin with the weights of a trained model (fine-tuning)"),
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option(parser=path_of, metavar="run.json", help="repeat the run of this record")
    ] = None,
) -> None:
    """Train a model; after every epoch validate it, sample from it and keep the best.

    With --resume, an option that is left out is as the run was started; with --from-run, as in that run.
    """
    named = {"num_epochs": epochs, "max_steps": max_steps, "seed": seed, "tokenizer": tokenizer}
    overrides = parse_assignments(assignments or []) | {k: v for k, v in named.items() if v is not None}
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"  # by torchrun, after a worker died
    refuse_existing_run(out, resume or restarted)
    record = resumable(out) if resume or restarted else {}
    if resume and not record and not any((data, preset, init_from, from_run)):
        raise InputError(
            f"there is no run in {out} to go on with; correct --out, or say what to train, with --preset or --data"
        )
    repeated = {} if from_run is None else _record_in(from_run)
    if init_from is None and "init_from" in repeated:
        init_from = Path(repeated["init_from"]["folder"])
    begun = repeated or record  # the run checks that both are the same
    if record and init_from is not None and str(init_from.resolve()) != record.get("init_from", {}).get("folder"):
        raise InputError(
            f"the run in {out} did not begin with {init_from}; leave out --init-from, or give another --out"
        )
    if init_from is not None and not begun:
        begun = _begun_with(init_from, preset, data)
    preset = preset or begun.get("preset", DEFAULT_PRESET)
    merged = merge_settings(preset, config, overrides, begun.get("requested", {}))
    same_text = repeated and data is None and config is None and not set(overrides) & set(TEXT_SETTINGS)
    data = begun.get("data", "pydocs") if data is None else data
    require_source(data)
    load_libraries()
    from mu_sota.training.run import Beginning, train

    fingerprint = repeated["data_fingerprint"] if same_text else None
    beginning = Beginning(init_from, tuple(repeated.get("schedule", ())), fingerprint)
    try:
        train(preset, data, out, configure(merged), resume or restarted, beginning)
    finally:
        _part_from_other_processes()


def _record_in(file: Path) -> dict[str, Any]:
    """The record of a run, by its file or its folder.

    Raises:
        InputError: there is none.
    """
    folder = file.parent if file.name == RUN_FILE else file
    record = resumable(folder)
    if not record:
        raise InputError(f"--from-run is {file}, but there is no {folder / RUN_FILE}; give the run.json of a run")
    return record


def _begun_with(folder: Path, preset: str | None, data: str | None) -> dict[str, Any]:
    """What a run that begins with a trained model takes from it: its form, its tokenizer, and how it was trained.

    Args:
        folder: of the model, or of the run that made it.
        preset: whose way to train is asked for instead, if any.
        data: another text than that of the run, if any.

    Returns:
        `requested`, and of a model that a run made its `preset` and `data`.

    Raises:
        InputError: the folder holds no model.
    """
    files = model_folder(folder)
    config = read_json(files / "config.json", "give a folder with a whole model")
    form = {key: config[key] for key in MODEL_KEYS if key in config} | {"tokenizer": str(files)}
    made_by = resumable(folder.parent if folder.name == BEST_FOLDER else folder)
    if preset is None and made_by:
        kept = dict(made_by.get("requested", {**made_by["settings"], **made_by["model"]}))
        if data is not None:  # how its own text was read is nothing to another
            kept = {key: value for key, value in kept.items() if key not in Text.model_fields}
        return {"preset": made_by["preset"], "data": made_by["data"], "requested": kept | form}
    values = {**MODEL_PRESETS[DEFAULT_PRESET], **RUN_PRESETS[preset or DEFAULT_PRESET], **form}
    with in_one_sentence(f"{files / 'config.json'} is of no MU model", "give a folder with one"):
        for key in ("window", "stride"):
            values[key] = min(values.get(key, getattr(RunSettings(), key)), int(form["max_position_embeddings"]))
    return {"requested": values}


def _part_from_other_processes() -> None:
    """Under torchrun, end the group of processes in order; PyTorch complains otherwise."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
