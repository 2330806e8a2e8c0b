"""The model that a name on the command line stands for: a preset, a folder, a model type, or something to import."""

import copy
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, set_seed

from mu_sota.common.outside import in_one_sentence, parse_object, read_text, require_files
from mu_sota.model.configuration import MODEL_PRESETS, MuConfig
from mu_sota.model.errors import InputError, suggestion
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import BEST_FOLDER

from .build_model import Builder, rebuilder, with_usable_experts
from .configurations import config_of_type, read_config, reason_of
from .random_state import random_state_kept

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")


class Target(NamedTuple):
    """A model to check.

    Args:
        model: the module, or a function from ids to logits.
        description: for a reader.
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
        trust_remote_code: a folder's own Python files may run.
        dtype: number format of the weights; a callable's model keeps its own.

    Raises:
        InputError: there is no such thing, or it cannot be built or loaded.
    """
    if name in MODEL_PRESETS:
        return _built(MuConfig.from_preset(name, **overrides), Builder(f"preset {name}", False, dtype))
    if Path(name).exists():
        return _from_path(Path(name), overrides, trust_remote_code, dtype)
    if ":" in name and not name.startswith(("http:", "https:")):
        return _imported(name, overrides)
    if name in CONFIG_MAPPING:
        builder = Builder(f"model type {name}", False, dtype)
        builder.require_memory_for_layers(partial(config_of_type, name), overrides)
        return _built(config_of_type(name, overrides), builder)
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
    with in_one_sentence(f"the model in {path} cannot be used", "give another folder or file"):
        parse_object(read_text(file))
        if path.is_dir():
            require_files(folder)
    # A folder's own Python files are found only through the folder.
    source = str(folder if file.name == "config.json" else file)
    builder = Builder(f"configuration {file}", trust_remote_code, dtype)
    read = partial(read_config, source, trust_remote_code=trust_remote_code)
    builder.require_memory_for_layers(read, overrides)
    config = read(overrides)
    if overrides or not path.is_dir() or not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return _built(config, builder)
    return _loaded(str(folder), config, trust_remote_code, dtype)


def _from_hub(name: str, overrides: dict[str, Any], trust_remote_code: bool, dtype: torch.dtype) -> Target:
    try:
        config = read_config(name, overrides, trust_remote_code)
    except InputError as error:
        hint = suggestion(name, [*MODEL_PRESETS, *CONFIG_MAPPING]) if "/" not in name else None
        raise InputError(
            f"there is no folder or file {name!r} here, and it is no preset, package.module:name or model type of "
            f"transformers{f' ({hint})' if hint else ''}; from the Hugging Face hub {error}"
        ) from error
    if overrides:
        return _built(config, Builder(f"configuration of {name}", trust_remote_code, dtype))
    return _loaded(name, config, trust_remote_code, dtype)


def _built(config: PreTrainedConfig, builder: Builder) -> Target:
    model = builder.build(config)
    return Target(model, f"{builder.description}, random weights", rebuilder(config, builder.trust_remote_code))


def _loaded(source: str, config: PreTrainedConfig, trust_remote_code: bool, dtype: torch.dtype) -> Target:
    try:
        if isinstance(config, MuConfig):
            loaded: Any = MuForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
            )
    except Exception as error:  # from missing files to pickles that are refused
        raise InputError(f"the model in {source} cannot be loaded: {reason_of(error)}") from error
    model, loading = loaded
    if loading["missing_keys"]:  # filled with random values by the library
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise InputError(f"the weights in {source} lack what its config.json asks for: {missing} ...")
    model = with_usable_experts(model, dtype)
    return Target(model, f"{source}, weights as saved", rebuilder(config, trust_remote_code))


def _imported(name: str, arguments: dict[str, Any]) -> Target:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a script may end the program
        raise InputError(f"{name} cannot be imported: {reason_of(error)}") from error
    if isinstance(found, nn.Module) or not callable(found):
        if arguments:
            raise InputError(
                f"{name} is there already, so --set cannot change it; name a class or a function that builds the model"
            )
        return Target(found, f"{name}, as it is", (lambda: copy.deepcopy(found)) if callable(found) else None)
    if not _can_be_called(found, arguments):
        if arguments or inspect.isclass(found):
            advice = f"not those given with --set ({', '.join(arguments)})" if arguments else "give them with --set"
            raise InputError(
                f"{name} takes the arguments {inspect.signature(found)}; {advice}, or name a function without "
                f"arguments that builds the model"
            )
        return Target(found, f"{name}, as it is", None)  # it wants ids

    def make() -> Any:
        with random_state_kept():
            set_seed(0)
            try:
                return found(**arguments)
            except (Exception, SystemExit) as error:
                raise InputError(f"{name} made no model: {reason_of(error)}") from error

    model = make()
    return Target(model, f"{name}()", make if isinstance(model, nn.Module) else None)


def _can_be_called(function: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """These arguments suffice, so it makes a model. A function that wants more, the ids, is the model."""
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError):
        return False
    return True
