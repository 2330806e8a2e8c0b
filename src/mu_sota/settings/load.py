"""The settings of a run: presets, a YAML file and `--set key=value`, merged and checked."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mu_sota.model.configuration import MODEL_PRESETS, MuConfig
from mu_sota.model.errors import InputError, cut

_SHOWN = 60  # characters of a name or value that cannot be used


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """No setting is a truth value, and `true` would pass for 1."""
        for key, value in values.items():
            _refuse_truth_value(key, value)
        return values


class Sampling(_Settings):
    """How the next token is drawn. The defaults are the recipe of the run instructions."""

    temperature: float = Field(
        default=0.8, ge=0, le=100, description="below 1 plainer, above 1 wilder, 0 always the likeliest token"
    )

    @field_validator("temperature")
    @classmethod
    def _no_overflow(cls, temperature: float) -> float:
        """Logits are divided by it."""
        if 0 < temperature < 0.01:
            raise PydanticCustomError("temperature", "input should be 0, for the likeliest token, or at least 0.01")
        return temperature

    top_k: int = Field(default=50, ge=0, description="sample among so many tokens; 0 for all")
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="sample among the most likely tokens of this total probability"
    )
    repetition_penalty: float = Field(
        default=1.2, ge=1, le=100, description="above 1, tokens already in the text become less likely"
    )


class Generation(Sampling):
    """How one text is continued."""

    max_new_tokens: int = Field(default=30, ge=1, description="tokens to add")
    seed: int = Field(default=0, ge=0, lt=2**31, description="same seed, same text")

    def changed(self, key: str, value: Any) -> "Generation":
        """A copy with one setting replaced.

        Raises:
            InputError: no such setting, or the value is of the wrong type or out of range.
        """
        if key not in type(self).model_fields:
            raise InputError(_no_such_setting(key, list(type(self).model_fields)))
        try:
            return type(self)(**{**self.model_dump(), key: value})
        except ValidationError as error:
            raise InputError(_sentence(error)) from None


class Training(_Settings):
    """How a run trains and evaluates, and what it continues after every epoch."""

    num_epochs: int = Field(5, ge=1, description="passes over the training windows")
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many optimizer steps, whatever num_epochs says"
    )
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="sequences at once per process; the rest is accumulated. Default: chosen by device"
    )
    learning_rate: float = Field(1e-4, gt=0, description="peak of the one-cycle schedule")
    warmup_steps: int = Field(
        1000, ge=0, description="steps up to the peak; in a run that has no more than these, 30 % of its steps"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW, on weight matrices and tables only")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    window: int = Field(512, ge=1, description="input tokens of a training or evaluation window")
    stride: int = Field(256, ge=1, description="tokens between the starts of two training windows")
    eval_stride: int | None = Field(
        None, ge=1, description="tokens between the starts of two evaluation windows. Default: no overlap"
    )
    tokenizer: Literal["bpe", "word"] = Field("bpe", description="byte-level BPE, or the text's own closed vocabulary")
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, window order, dropout and samples")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, fp16 with loss scaling on others, fp32 on CPU"
    )
    log_steps: int = Field(10, ge=1, description="optimizer steps between two rows of metrics.jsonl")
    checkpoint_minutes: float = Field(10, gt=0, description="minutes between checkpoints within an epoch")
    trackers: list[str] = Field(
        ["tensorboard"], description="as `report_to` of transformers: wandb, mlflow, ..., or []"
    )
    prompts: list[str] = Field(
        ["The quick brown", "Once upon a time", "In the beginning"], description="continued after every epoch"
    )
    sample_tokens: int = Field(30, ge=1, description="new tokens per prompt")


class RunSettings(Sampling, Training):
    """How a run trains, evaluates and samples. The defaults are the recipe of the preset `mu-sota`."""


RUN_PRESETS: dict[str, dict[str, Any]] = {
    "mu-sota": {},
    "quickstart": {
        "batch_size": 16,
        "learning_rate": 3e-3,
        "warmup_steps": 200,
        "window": 128,
        "stride": 128,
    },
}

MODEL_KEYS = (
    "vocab_size",
    "matrix_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "dropout",
    "layer_norm_eps",
)


class Settings(NamedTuple):
    """A run's settings and the model's configuration (whose vocabulary follows the real tokenizer later)."""

    run: RunSettings
    model: MuConfig


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
    if preset not in MODEL_PRESETS:
        raise InputError(f"no preset is named {preset!r}; choose one of: {', '.join(MODEL_PRESETS)}")
    merged: dict[str, Any] = {**MODEL_PRESETS[preset], **RUN_PRESETS[preset], **(recorded or {})}
    if file is not None:
        merged.update(read_yaml(Path(file)))
    merged.update(overrides or {})

    known = [*RunSettings.model_fields, *MODEL_KEYS]
    for key in merged:
        if key not in known:
            raise InputError(_no_such_setting(key, known))
    try:
        run = RunSettings(**{key: value for key, value in merged.items() if key in RunSettings.model_fields})
    except ValidationError as error:
        raise InputError(_sentence(error)) from None
    model = _model_config({key: value for key, value in merged.items() if key in MODEL_KEYS})
    if run.window > model.max_position_embeddings:
        raise InputError(
            f"window is {run.window}, but the model has {model.max_position_embeddings} positions; "
            f"lower window or raise max_position_embeddings"
        )
    for name, stride in (("stride", run.stride), ("eval_stride", run.eval_stride or 1)):
        if stride > run.window:
            raise InputError(
                f"{name} is {stride}, but must not exceed window ({run.window}), or tokens between windows would be "
                f"skipped; set it too, as with --set {name}={run.window}"
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


def _model_config(values: dict[str, Any]) -> MuConfig:
    checked = {}
    for key, value in values.items():
        _refuse_truth_value(key, value)
        try:
            checked[key] = TypeAdapter(MuConfig.__annotations__[key]).validate_python(value)
        except ValidationError as error:
            raise InputError(_sentence(error, key)) from None
    return MuConfig.from_preset("mu-sota", **checked)


def _no_such_setting(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key)[:_SHOWN], known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the settings are: {', '.join(known)}"
    return f"there is no setting {cut(repr(key), _SHOWN)}; {hint}"


def _refuse_truth_value(key: str, value: Any) -> None:
    if isinstance(value, bool):
        raise InputError(f"the setting {key} is {value!r}: input should be a number or a text, not true or false")


def _sentence(error: ValidationError, key: str = "") -> str:
    first = error.errors()[0]
    name = key or ".".join(str(part) for part in first["loc"])
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"the setting {name} is {cut(repr(first['input']), _SHOWN)}: {reason}"
