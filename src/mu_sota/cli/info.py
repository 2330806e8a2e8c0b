"""`mu-sota info`."""

from typing import Annotated

import typer

from mu_sota.settings.load import configure, merge_settings, parse_assignments
from mu_sota.settings.presets import DEFAULT_PRESET

from .app import PRESETS, Assignments, SettingsFile, load_libraries


def info(
    preset: Annotated[str, typer.Option(help=PRESETS)] = DEFAULT_PRESET,
    assignments: Assignments = None,
    config: SettingsFile = None,
) -> None:
    """Parameters part by part, FLOPs per token, memory of a training step, and all settings."""
    merged = merge_settings(preset, config, parse_assignments(assignments or []))
    load_libraries()
    from .info_page import info_page

    print(info_page(configure(merged)))
