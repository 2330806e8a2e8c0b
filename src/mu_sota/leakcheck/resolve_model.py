"""What a name on the command line stands for: a preset, a folder, a kind of model, or something to import."""

import copy
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, set_seed

from mu_sota.model.configuration import MODEL_PRESETS, MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import BEST_FOLDER

from .model_adapter import one_line, random_state_kept

SHRUNK_VOCABULARY, SHRUNK_LAYERS = 64, 2
MANY_LAYERS = 1000
"""With more, the memory of a model is estimated from a few of its layers: to build them all takes long in any case."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")


class Target(NamedTuple):
    """A model to check.

    Args:
        model: the module, or a function from ids to logits.
        description: what it is, for a reader.
        rebuild: makes it anew with random weights, small where its configuration allows; None for a function.
    """

    model: Callable[..., Any]
    description: str
    rebuild: Callable[[], nn.Module] | None


def resolve(name: str, overrides: dict[str, Any], trust_remote_code: bool, dtype: torch.dtype) -> Target:
    """The model that a name stands for.

    Args:
        name: a preset of ours; a folder of a run, or of any causal model in Hugging Face layout, or its config.json;
            `package.module:callable`; a model type of `transformers`; or a model on the Hugging Face hub.
        overrides: replace fields of the configuration, and then weights are random; arguments of the callable.
        trust_remote_code: whether a folder's own Python files may run.
        dtype: number format of the weights; a callable's model keeps its own.

    Raises:
        InputError: there is no such thing, or it cannot be built or loaded.
    """
    if name in MODEL_PRESETS:
        return _built(MuConfig.from_preset(name, **overrides), False, dtype, f"preset {name}")
    if Path(name).exists():
        return _from_path(Path(name), overrides, trust_remote_code, dtype)
    if ":" in name and not name.startswith(("http:", "https:")):
        return _imported(name, overrides)
    if name in CONFIG_MAPPING:
        _require_memory_for_layers(partial(_config_of_type, name), overrides, False, dtype, f"model type {name}")
        return _built(_config_of_type(name, overrides), False, dtype, f"model type {name}")
    return _from_hub(name, overrides, trust_remote_code, dtype)


def _from_path(path: Path, overrides: dict[str, Any], trust_remote_code: bool, dtype: torch.dtype) -> Target:
    if path.suffix == ".py":
        raise InputError(f"{path} is a Python file; write {path.stem}:NAME, with a class, function or model in it")
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / BEST_FOLDER / "config.json").exists():
        folder = path / BEST_FOLDER
    file = folder / "config.json" if path.is_dir() else path
    if not file.exists():
        raise InputError(f"{path} holds no config.json, so no model of ours or in Hugging Face layout")
    # A folder's own Python files are found only through the folder.
    source = str(folder if file.name == "config.json" else file)

    def read(replaced: dict[str, Any]) -> PreTrainedConfig:
        return _read_config(source, replaced, trust_remote_code)

    _require_memory_for_layers(read, overrides, trust_remote_code, dtype, f"configuration {file}")
    config = read(overrides)
    if overrides or not path.is_dir() or not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return _built(config, trust_remote_code, dtype, f"configuration {file}")
    return _loaded(str(folder), config, trust_remote_code, dtype)


def _from_hub(name: str, overrides: dict[str, Any], trust_remote_code: bool, dtype: torch.dtype) -> Target:
    try:
        config = _read_config(name, overrides, trust_remote_code)
    except InputError as error:
        close = difflib.get_close_matches(name, [*MODEL_PRESETS, *CONFIG_MAPPING], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close and "/" not in name else ""
        raise InputError(
            f"there is no folder or file {name!r} here, and it is no preset, package.module:name or model type of "
            f"transformers{hint}; from the Hugging Face hub {error}"
        ) from error
    if overrides:
        return _built(config, trust_remote_code, dtype, f"configuration of {name}")
    return _loaded(name, config, trust_remote_code, dtype)


def _read_config(source: str, overrides: dict[str, Any], trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration in a file or on the hub, some fields replaced."""
    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
        if "/" in str(values.get("attn_implementation", "")) and not trust_remote_code:  # kernels from the hub are code
            raise InputError(
                f"{source} asks for attention kernels from the hub; they run only with --trust-remote-code"
            )
        config: PreTrainedConfig
        if values.get("model_type") == MuConfig.model_type:
            config = MuConfig.from_dict(values)
        else:
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        return _replaced(config, overrides)
    except InputError:
        raise
    except Exception as error:
        hint = "; its own code runs only with --trust-remote-code" if "trust_remote_code" in str(error) else ""
        raise InputError(f"the configuration {source} cannot be used: {_reason(error)}{hint}") from error


def _config_of_type(name: str, overrides: dict[str, Any]) -> PreTrainedConfig:
    try:
        config = AutoConfig.for_model(name)
        if all(_has(config, key) for key in overrides):  # so that what follows from them is derived
            return AutoConfig.for_model(name, **overrides)
        return _replaced(config, overrides)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"no configuration of type {name} can be made: {_reason(error)}") from error


def _replaced(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
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
            close = difflib.get_close_matches(key, [*text.to_dict(), *text.attribute_map], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"a {type(text).__name__} has no field {key!r}{hint}")
        part[text.attribute_map.get(key, key)] = value
    layers, before = _layers(overrides, text), _layers({}, text)
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
    except RuntimeError:  # a field that differs from layer to layer may not be read from the whole
        return True


def _part_name(config: PreTrainedConfig, text: PreTrainedConfig) -> str:
    return next(name for name in config.sub_configs if getattr(config, name, None) is text)


def _layers(overrides: dict[str, Any], text: PreTrainedConfig) -> int | None:
    own = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    found = overrides.get("num_hidden_layers", overrides.get(own, getattr(text, own, None)))
    return found if isinstance(found, int) else None


def _shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same with few layers, at least one of each kind, and a small vocabulary."""
    text = config.get_text_config()
    kinds = len(set(getattr(text, "layer_types", None) or []))
    layers = _layers({}, text)
    overrides: dict[str, Any] = {}
    if layers is not None:
        overrides["num_hidden_layers"] = min(layers, max(SHRUNK_LAYERS, kinds))
    if getattr(text, "vocab_size", 0) > SHRUNK_VOCABULARY:
        overrides["vocab_size"] = SHRUNK_VOCABULARY
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if hasattr(text, name):
                overrides[name] = None
    return _replaced(config, overrides)


def _built(config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype, description: str) -> Target:
    """A model with random weights, always the same."""
    layers = _layers({}, config.get_text_config())
    _require_memory_for_layers(
        partial(_replaced, config), {"num_hidden_layers": layers}, trust_remote_code, dtype, description
    )
    _require_memory(_parameters(config, trust_remote_code, dtype, description), dtype, description)
    model = _make(config, trust_remote_code, dtype)
    return Target(model, f"{description}, random weights", _rebuilder(config, trust_remote_code))


def _require_memory_for_layers(
    make: Callable[[dict[str, Any]], PreTrainedConfig],
    overrides: dict[str, Any],
    trust_remote_code: bool,
    dtype: torch.dtype,
    description: str,
) -> None:
    """Refuse too many layers before anything is made that has an entry for each."""
    for key, layers in overrides.items():
        if "layer" not in key or not isinstance(layers, int) or layers <= MANY_LAYERS:
            continue
        one, two = (
            _parameters(make(overrides | {key: few * SHRUNK_LAYERS}), trust_remote_code, dtype, description)
            for few in (1, 2)
        )
        _require_memory(one + (two - one) // SHRUNK_LAYERS * (layers - SHRUNK_LAYERS), dtype, description)


def _parameters(config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype, description: str) -> int:
    """How many there are, and entries of buffers, without making them."""
    try:
        with torch.device("meta"):
            model = _make(config, trust_remote_code, dtype)
    except InputError as error:
        if "overflow" in str(error).lower():
            raise InputError(f"{description} would take more than {2**33:,} GiB; check it smaller") from error
        raise
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def _require_memory(count: int, dtype: torch.dtype, description: str) -> None:
    need, free = count * dtype.itemsize, psutil.virtual_memory().available
    if need > 0.6 * free:
        raise InputError(
            f"{description} has {count:,} parameters, {need / 2**30:,.0f} GiB, but only {free / 2**30:.0f} GiB of "
            f"memory are free; check it smaller, as with --set num_hidden_layers=2 --set hidden_size=64"
        )


def _make(config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype) -> nn.Module:
    with random_state_kept():
        set_seed(0)
        config = copy.deepcopy(config)  # a model notes its choices in it
        try:
            if isinstance(config, MuConfig):
                return nn.Module.to(MuForCausalLM(config), dtype)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
            return _able(model, dtype)
        except Exception as error:
            raise InputError(f"no causal model can be made from a {type(config).__name__}: {_reason(error)}") from error


def _rebuilder(config: PreTrainedConfig, trust_remote_code: bool) -> Callable[[], nn.Module]:
    def small() -> nn.Module:
        try:
            model = _make(_shrunk(config), trust_remote_code, torch.float32)
            model(torch.zeros(1, 2, dtype=torch.long))
        except Exception:  # some sizes depend on others: then as large as it is
            return _make(config, trust_remote_code, torch.float32)
        return model

    return small


def _loaded(source: str, config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype) -> Target:
    try:
        if isinstance(config, MuConfig):
            loaded: Any = MuForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
            )
    except Exception as error:  # from missing files to pickles that are refused
        raise InputError(f"the model in {source} cannot be loaded: {_reason(error)}") from error
    model, loading = loaded
    if loading["missing_keys"]:  # filled with random values by the library
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise InputError(f"the weights in {source} lack what its config.json asks for: {missing} ...")
    return Target(_able(model, dtype), f"{source}, weights as saved", _rebuilder(config, trust_remote_code))


def _able(model: Any, dtype: torch.dtype) -> nn.Module:
    """The library's grouped product of experts has no float64."""
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def _imported(name: str, arguments: dict[str, Any]) -> Target:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a script may end the program
        raise InputError(f"{name} cannot be imported: {_reason(error)}") from error
    if isinstance(found, nn.Module) or not callable(found):
        if arguments:
            raise InputError(
                f"{name} is there already, so --set cannot change it; name a class or a function that builds the model"
            )
        return Target(found, f"{name}, as it is", (lambda: copy.deepcopy(found)) if callable(found) else None)
    if not _can_be_called(found, arguments):
        if arguments or inspect.isclass(found):
            given = f"not those given with --set ({', '.join(arguments)})" if arguments else "give them with --set"
            raise InputError(
                f"{name} takes the arguments {inspect.signature(found)}; {given}, or name a function without arguments "
                f"that builds the model"
            )
        return Target(found, f"{name}, as it is", None)  # it wants ids

    def make() -> Any:
        with random_state_kept():
            set_seed(0)
            try:
                return found(**arguments)
            except (Exception, SystemExit) as error:
                raise InputError(f"{name} made no model: {_reason(error)}") from error

    model = make()
    return Target(model, f"{name}()", make if isinstance(model, nn.Module) else None)


def _can_be_called(function: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """With these arguments alone: then it makes a model. One that wants more, the ids, is the model."""
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError):
        return False
    return True


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
    return one_line(cause or error)
