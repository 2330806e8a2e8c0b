"""Presets, a YAML file and `--set key=value`, merged and checked."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from mu_sota.model.errors import InputError
from mu_sota.model.presets import MODEL_PRESETS

from .presets import MODEL_KEYS, RUN_PRESETS
from .run import RunSettings
from .sentences import no_such_setting, refuse_truth_value, sentence_of

if TYPE_CHECKING:
    from mu_sota.model.configuration import MuConfig


class Settings(NamedTuple):
    """A run's settings and the model's configuration (whose vocabulary follows the real tokenizer later)."""

    run: RunSettings
    model: "MuConfig"


class MergedSettings(NamedTuple):
    """Checked settings of a run, and values for the model's configuration, which only PyTorch's presence can check."""

    run: RunSettings
    model: dict[str, Any]


def load_settings(
    preset: str,
    file: str | os.PathLike[str] | None = None,
    overrides: dict[str, Any] | None = None,
    recorded: dict[str, Any] | None = None,
) -> Settings:
    """Merge a preset, the settings of a run to resume, a YAML file of `key: value`, and overrides; check them all.

    Raises:
        InputError: an unknown preset or setting, a value of the wrong type or out of range, an unreadable file.
    """
    return configure(merge_settings(preset, file, overrides, recorded))


def merge_settings(
    preset: str,
    file: str | os.PathLike[str] | None = None,
    overrides: dict[str, Any] | None = None,
    recorded: dict[str, Any] | None = None,
) -> MergedSettings:
    """The first half of `load_settings`: all checks for which PyTorch need not be loaded.

    Raises:
        InputError: an unknown preset or setting, a value of the run that cannot be used, an unreadable file.
    """
    if preset not in MODEL_PRESETS:
        raise InputError(f"no preset is named {preset!r}; choose one of: {', '.join(MODEL_PRESETS)}")
    # A preset may change from version to version: a run that goes on has what it was started with, and for fields that
    # its version did not know, what they are by default.
    merged: dict[str, Any] = dict(recorded or {**MODEL_PRESETS[preset], **RUN_PRESETS[preset]})
    if file is not None:
        merged.update(read_yaml(Path(file)))
    merged.update(overrides or {})

    known = [*RunSettings.model_fields, *MODEL_KEYS]
    for key in merged:
        if key not in known:
            raise InputError(no_such_setting(key, known))
    try:
        run = RunSettings(**{key: value for key, value in merged.items() if key in RunSettings.model_fields})
    except ValidationError as error:
        raise InputError(sentence_of(error)) from None
    for name, stride in (("stride", run.stride), ("eval_stride", run.eval_stride or 1)):
        if stride > run.window:
            raise InputError(
                f"{name} is {stride}, but must not exceed window ({run.window}), or tokens between windows would be "
                f"skipped; set it too, as with --set {name}={run.window}"
            )
    return MergedSettings(run, {key: value for key, value in merged.items() if key in MODEL_KEYS})


def configure(merged: MergedSettings) -> Settings:
    """The second half of `load_settings`: the model's configuration, checked.

    Raises:
        InputError: a value of the model is of the wrong type or out of range, or its positions hold no window.
    """
    from mu_sota.model.configuration import MuConfig

    run, values = merged
    checked = {}
    for key, value in values.items():
        refuse_truth_value(key, value)
        try:
            checked[key] = TypeAdapter(MuConfig.__annotations__[key]).validate_python(value)
        except ValidationError as error:
            raise InputError(sentence_of(error, key)) from None
    model = MuConfig.from_preset("mu-sota", **checked)
    if run.window > model.max_position_embeddings:
        raise InputError(
            f"window is {run.window}, but the model has {model.max_position_embeddings} positions; "
            f"lower window or raise max_position_embeddings"
        )
    return Settings(run, model)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["key=value", ...]` to a dictionary; values are read as YAML, so numbers and lists come out as such.

    Raises:
        InputError: an assignment without `=`, or a value that is not YAML.
    """
    parsed = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set takes key=value, such as --set batch_size=16, but got {assignment!r}")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"the value of --set {assignment!r} cannot be read; quote it, as in key='text'") from None
    return parsed


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings of a YAML file, not yet checked.

    Raises:
        InputError: it does not exist, or cannot be read as settings.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the settings file {path} cannot be read as YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"the settings file {path} must hold lines of key: value, but holds a {type(content).__name__}"
        )
    return content
