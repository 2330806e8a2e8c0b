"""`mu-sota train`."""

from pathlib import Path
from typing import Annotated

import typer

from mu_sota.data.sources import require_source
from mu_sota.saved.run_record import recorded, refuse_existing_run
from mu_sota.settings.load import configure, merge_settings, parse_assignments
from mu_sota.settings.presets import DEFAULT_PRESET

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
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out, if there is one")] = False,
) -> None:
    """Train a model; after every epoch validate it, sample from it and keep the best.

    With --resume, an option that is left out is as the run was started.
    """
    named = {"num_epochs": epochs, "max_steps": max_steps, "seed": seed, "tokenizer": tokenizer}
    overrides = parse_assignments(assignments or []) | {k: v for k, v in named.items() if v is not None}
    if not resume:
        refuse_existing_run(out)
    record = recorded(out) if resume else {}
    preset = preset or record.get("preset", DEFAULT_PRESET)
    data = record.get("data", "pydocs") if data is None else data
    merged = merge_settings(preset, config, overrides, record.get("requested", {}))
    require_source(data)
    load_libraries()
    from mu_sota.training.run import train

    try:
        train(preset, data, out, configure(merged), resume)
    finally:
        _part_from_other_processes()


def _part_from_other_processes() -> None:
    """Under torchrun, end the group of processes in order; PyTorch complains otherwise."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
