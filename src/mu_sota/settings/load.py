"""Presets, a YAML file and `--set key=value`, merged and checked."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from mu_sota.common.outside import in_one_sentence, read_text, require_shallow
from mu_sota.model.errors import InputError, cut
from mu_sota.model.presets import MODEL_PRESETS

from .presets import MODEL_KEYS, RUN_PRESETS
from .run import RunSettings
from .sentences import no_such_setting, refuse_truth_value, sentence_of

if TYPE_CHECKING:
    from mu_sota.model.configuration import MuConfig


_MOST_BYTES = 2**18  # of a file of settings, which takes a second


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
    if not isinstance(preset, str) or preset not in MODEL_PRESETS:
        raise InputError(f"no preset is named {cut(repr(preset))}; choose one of: {', '.join(MODEL_PRESETS)}")
    # A preset may change from version to version: a run that goes on has what it was started with, and for fields that
    # its version did not know, what they are by default.
    if not isinstance(recorded, dict | None):
        raise InputError(f"the recorded settings are {cut(repr(recorded))}, not names and values; give another --out")
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
            parsed[key.strip()] = _parsed(value)
        except Exception:  # the library lets through what int, datetime and base64 raise
            raise InputError(
                f"the value of --set {cut(repr(assignment), 80)} cannot be read; quote it, as in key='text'"
            ) from None
    return parsed


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings of a YAML file, not yet checked.

    Raises:
        InputError: it does not exist, or cannot be read as settings.
    """
    if not os.path.lexists(path):
        raise InputError(f"the settings file {path} does not exist; correct --config")
    remedy = "give a file with a line of key: value for each setting"
    with in_one_sentence(f"the settings file {path} cannot be read as YAML", remedy):
        content = _parsed(read_text(path, _MOST_BYTES))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"the settings file {path} must hold lines of key: value, but holds a {type(content).__name__}"
        )
    return content


class _Loader(yaml.SafeLoader):
    """Plain YAML without repeated keys, and without aliases, by which a small file stands for a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"it has the alias *{self.peek_event().anchor}, in whose place the value must be written")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands there twice."""
        content = super().construct_mapping(node, deep=deep)
        if len(content) < len(node.value):
            raise ValueError("it has a key twice")
        return content


def _parsed(text: str) -> Any:
    content = yaml.load(text, _Loader)  # noqa: S506 - which is a SafeLoader
    require_shallow(content)
    return content
