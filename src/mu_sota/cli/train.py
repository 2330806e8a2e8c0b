"""`mu-sota train`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mu_sota.common.files import read_json
from mu_sota.data.sources import require_source
from mu_sota.model.errors import InputError
from mu_sota.model.presets import MODEL_PRESETS
from mu_sota.saved.run_record import RUN_FILE, model_folder, record_of, recorded, refuse_existing_run
from mu_sota.settings.load import configure, merge_settings, parse_assignments
from mu_sota.settings.presets import DEFAULT_PRESET, MODEL_KEYS, RUN_PRESETS

from .app import DATA, PRESETS, TOKENIZER, Assignments, SettingsFile, load_libraries, path_of


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
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # torchrun has restarted its workers
    refuse_existing_run(out, resume)
    record = recorded(out) if resume else {}
    if resume and not record and not any((data, preset, init_from, from_run)):
        raise InputError(
            f"there is no run in {out} to go on with; correct --out, or say what to train, with --preset or --data"
        )
    repeated = {} if record or from_run is None else _record_in(from_run)
    if init_from is None and "init_from" in repeated:
        init_from = Path(repeated["init_from"]["folder"])
    trained = {} if record or init_from is None else _form_of(init_from)
    begun = record or repeated
    preset = preset or begun.get("preset") or trained.get("preset", DEFAULT_PRESET)
    base = begun.get("requested", {})
    if trained and not base:
        base = {**MODEL_PRESETS[preset], **RUN_PRESETS[preset], "tokenizer": trained["tokenizer"]}
    base |= trained.get("model", {})
    merged = merge_settings(preset, config, overrides, base)
    same_text = repeated and data is None and not overrides
    data = begun.get("data", "pydocs") if data is None else data
    require_source(data)
    load_libraries()
    from mu_sota.training.run import Beginning, train

    schedule, fingerprint = repeated.get("schedule", ()), repeated["data_fingerprint"] if same_text else None
    try:
        train(preset, data, out, configure(merged), resume, Beginning(init_from, tuple(schedule), fingerprint))
    finally:
        _part_from_other_processes()


def _record_in(file: Path) -> dict[str, Any]:
    """The record of a run, by its file or its folder.

    Raises:
        InputError: there is none.
    """
    folder = file.parent if file.name == RUN_FILE else file
    record = recorded(folder)
    if not record:
        raise InputError(f"--from-run is {file}, but there is no {folder / RUN_FILE}; give the run.json of a run")
    return record


def _form_of(folder: Path) -> dict[str, Any]:
    """The form of a trained model: `model`, its configuration; `tokenizer`, its folder; `preset`, if a run made it.

    Raises:
        InputError: the folder holds no model.
    """
    files = model_folder(folder)
    config = read_json(files / "config.json", "give a folder with a whole model")
    form = {"model": {key: config[key] for key in MODEL_KEYS if key in config}, "tokenizer": str(files)}
    preset = record_of(folder).get("preset")
    return form | ({"preset": preset} if preset in MODEL_PRESETS else {})


def _part_from_other_processes() -> None:
    """Under torchrun, end the group of processes in order; PyTorch complains otherwise."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
