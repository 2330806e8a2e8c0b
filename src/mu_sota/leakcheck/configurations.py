"""Configurations of models of `transformers`: read or made, fields replaced, shrunk."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from mu_sota.common.text import one_line
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError, suggestion

SHRUNK_VOCABULARY, SHRUNK_LAYERS = 64, 2
MOST_LABELS = 10**6


def read_config(source: str, overrides: dict[str, Any], trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration in a file or on the hub, some fields replaced.

    Raises:
        InputError: it is missing, unusable, or its own code or kernels are not trusted.
    """
    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
        if "/" in str(values.get("attn_implementation", "")) and not trust_remote_code:  # kernels from the hub are code
            raise InputError(
                f"{source} asks for attention kernels from the hub; they run only with --trust-remote-code"
            )
        if (labels := values.get("num_labels", 0)) > MOST_LABELS:  # each of which the library gives a name
            raise InputError(f"{source} has {labels:,} num_labels; give at most {MOST_LABELS:,}")
        config: PreTrainedConfig
        if values.get("model_type") == MuConfig.model_type:
            config = MuConfig.from_dict(values)
        else:
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        return replaced(config, overrides)
    except InputError:
        raise
    except Exception as error:
        hint = "; its own code runs only with --trust-remote-code" if "trust_remote_code" in str(error) else ""
        raise InputError(f"the configuration {source} cannot be used: {reason_of(error)}{hint}") from error


def config_of_type(name: str, overrides: dict[str, Any]) -> PreTrainedConfig:
    """The default configuration of a model type, some fields replaced."""
    try:
        config = AutoConfig.for_model(name)
        if all(_has(config, key) for key in overrides):  # the class then derives others from them
            return AutoConfig.for_model(name, **overrides)
        return replaced(config, overrides)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"no configuration of type {name} can be made: {reason_of(error)}") from error


def replaced(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
    """A configuration with some fields replaced, made anew so that its class checks them.

    A field may be that of the text part of a configuration with several parts. Lists with one entry a layer (kinds of
    layers) are cut to a smaller number of layers, each kind kept if it can be.

    Raises:
        InputError: there is no such field.
    """
    if not overrides:
        return config
    values = config.to_dict()
    text = config.get_text_config()
    part = values if text is config else values[_part_name(config, text)]
    for key, value in overrides.items():
        if not _has(text, key):
            hint = suggestion(key, [*text.to_dict(), *text.attribute_map])
            raise InputError(f"a {type(text).__name__} has no field {key!r}{f'; {hint}' if hint else ''}")
        part[text.attribute_map.get(key, key)] = value
    layers, before = layers_of(overrides, text), layers_of({}, text)
    if layers is not None and before is not None and layers != before:
        lists = [key for key, value in part.items() if isinstance(value, list) and len(value) == before]
        kinds = list(zip(*(map(str, part[key]) for key in lists), strict=True)) if lists else []
        firsts = [index for index, kind in enumerate(kinds) if kinds.index(kind) == index]
        kept = sorted([*firsts, *(index for index in range(len(kinds)) if index not in firsts)][:layers])
        for key in set(lists) - set(overrides):
            part[key] = [part[key][index] for index in kept] if layers < before else None
    return type(config).from_dict(values)


def _has(config: PreTrainedConfig, key: str) -> bool:
    try:
        return hasattr(config, key)
    except RuntimeError:  # a field that differs from layer to layer may not be read as one
        return True


def _part_name(config: PreTrainedConfig, text: PreTrainedConfig) -> str:
    return next(name for name in config.sub_configs if getattr(config, name, None) is text)


def layers_of(overrides: dict[str, Any], text: PreTrainedConfig) -> int | None:
    """Number of layers, with some fields replaced; None if the configuration has none."""
    own = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    found = overrides.get("num_hidden_layers", overrides.get(own, getattr(text, own, None)))
    return found if isinstance(found, int) else None


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same configuration with few layers, at least one of each kind, and a small vocabulary."""
    text = config.get_text_config()
    kinds = len(set(getattr(text, "layer_types", None) or []))
    layers = layers_of({}, text)
    overrides: dict[str, Any] = {}
    if layers is not None:
        overrides["num_hidden_layers"] = min(layers, max(SHRUNK_LAYERS, kinds))
    if getattr(text, "vocab_size", 0) > SHRUNK_VOCABULARY:
        overrides["vocab_size"] = SHRUNK_VOCABULARY
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if hasattr(text, name):
                overrides[name] = None
    return replaced(config, overrides)


def reason_of(error: BaseException) -> str:
    """An error of the library in one line; of a configuration class's own check, the cause."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
    return one_line(cause or error)
