"""A trained model in a folder: opened with its tokenizer, and saved."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from mu_sota.common.files import read_json
from mu_sota.common.outside import in_one_sentence, parse_object, read_text, require_files
from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.model.configuration import MuConfig, refuse_beyond_memory
from mu_sota.model.errors import InputError, cut
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.sampling import Sampling

from .run_record import model_folder

# How attention is computed, by which the library can take code from the hub, and names of labels, which it makes up for
# any number of them.
_NO_PART_OF_A_MODEL = (
    *("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config"),
    *("num_labels", "id2label", "label2id"),
)


def load_trained(
    folder: str | Path, device: torch.device | None = None
) -> tuple[MuForCausalLM, PreTrainedTokenizerFast]:
    """Model in eval mode and tokenizer of a run's folder (its best epoch) or of any folder in Hugging Face layout.

    The model is on `device`, by default the CPU. Of `generation_config.json`, only what `Sampling` knows is taken, and
    the special tokens.

    Raises:
        InputError: the folder is missing, or holds no MU model, or one that cannot be used.
    """
    best = model_folder(Path(folder))
    model = load_model(best, {MuConfig.model_type: MuForCausalLM})
    assert isinstance(model, MuForCausalLM)
    with _loading(best):
        tokenizer = load_tokenizer(best)
        largest, vocabulary = max(tokenizer.get_vocab().values(), default=-1), model.config.vocab_size
        if largest >= vocabulary:
            raise InputError(
                f"the tokenizer in {best} has ids up to {largest:,}, but the model has {vocabulary:,} entries; copy "
                f"the tokenizer that was saved with the model"
            )
        model.generation_config = _generation_config(best, vocabulary)
    tokenizer.model_max_length = model.config.max_position_embeddings  # older runs did not save it
    torch.nn.Module.to(model, device)
    return model, tokenizer


def load_model(folder: Path, classes: Mapping[str, type[PreTrainedModel]]) -> PreTrainedModel:
    """The model in a folder in Hugging Face layout, in eval mode and on the CPU; weights are safetensors.

    Args:
        folder: with `config.json`. An index of several files of weights is not needed, and not read.
        classes: of the models that it may hold, by their `model_type`.

    Raises:
        InputError: it holds no such model, its weights do not fit its `config.json`, or a file cannot be used.
    """
    with _loading(folder):
        require_files(folder)
        content = parse_object(read_text(folder / "config.json"))
        kind = content.get("model_type")
        if not isinstance(kind, str) or kind not in classes:
            raise InputError(
                f"{folder} holds a model of type {cut(repr(kind))}, not a MU model ({MuConfig.model_type!r})"
                + (f" nor one of {', '.join(sorted(set(classes) - {MuConfig.model_type}))}" if len(classes) > 1 else "")
            )
        for key in _NO_PART_OF_A_MODEL:
            content.pop(key, None)
        config_class = classes[kind].config_class
        assert config_class is not None
        config = config_class.from_dict(content)
        files = _weight_files(folder)
        _require_same_size(folder, classes[kind], config, files)
        weights = {name: value for file in files for name, value in load_file(file).items()}
        loaded: Any = classes[kind].from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
        model: PreTrainedModel = loaded[0]
        loading: dict[str, Any] = loaded[1]
        wrong = sorted(key for part in ("missing_keys", "unexpected_keys") for key in loading[part])
        if wrong:
            raise InputError(f"the weights in {folder} do not fit its config.json: {', '.join(wrong[:3])} ...")
        model.name_or_path = model.config.name_or_path = str(folder)
        return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    one = folder / "model.safetensors"
    files = [one] if one.exists() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} has no model.safetensors; weights in other files are not read, since they can be code"
        )
    return files


def _require_same_size(folder: Path, kind: type[PreTrainedModel], config: PreTrainedConfig, files: list[Path]) -> None:
    """Before anything of the size that one of them names is allocated.

    Raises:
        InputError: `config.json` and the weights are of models of other sizes, or beyond this machine's memory.
    """
    n_tensors = n_values = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - no dictionary
        n_tensors += len(shapes)
        n_values += sum(math.prod(shape) for shape in shapes)
    asked = f"{config.num_hidden_layers:,} layers"
    if config.num_hidden_layers <= n_tensors:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in kind(config).parameters())
        if wanted / 2 <= n_values <= wanted * 2:  # an output that is tied to the embedding may stand there twice
            if isinstance(config, MuConfig):
                refuse_beyond_memory(config)
            return
        asked = f"{wanted:,} parameters"
    raise InputError(
        f"the weights in {folder} do not fit its config.json: they are {n_values:,} values in {n_tensors:,} tensors, "
        f"not a model of {asked}; copy both from one place"
    )


def _generation_config(folder: Path, vocabulary: int) -> GenerationConfig:
    """How the model is sampled, from its file; what is not known or not usable there is left out."""
    file = folder / "generation_config.json"
    saved, taken = read_json(file, "remove it, and samples are drawn as usual"), {}
    for key in Sampling.model_fields:
        try:
            taken[key] = getattr(Sampling(**{key: saved[key]}), key)
        except (KeyError, ValidationError):
            continue
    if isinstance(saved.get("do_sample"), bool):
        taken["do_sample"] = saved["do_sample"]
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if type(token := saved.get(key)) is int and 0 <= token < vocabulary:
            taken[key] = token
    return GenerationConfig(**taken)


def _loading(folder: Path) -> AbstractContextManager[None]:
    return in_one_sentence(
        f"the model in {folder} cannot be loaded", "copy the folder again, or take another epoch or run"
    )


def save_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    sampling: Sampling,
    folder: Path,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write model and tokenizer in Hugging Face layout; `generate` on what is loaded from there samples by `sampling`.

    The tokenizer cuts texts at the model's last position where it is asked to (`truncation=True`).

    Args:
        weights: the model's, if they are not to be asked of it.
    """
    # The settings of a run are Sampling, too, and have more than these.
    names = set(Sampling.model_fields) - (set() if sampling.temperature else {"temperature", "top_k", "top_p"})
    drawn = sampling.model_dump(include=names)
    model.generation_config = GenerationConfig(
        do_sample=sampling.temperature > 0,
        **drawn,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.model_max_length = model.config.max_position_embeddings
    for loading in ("is_local", "local_files_only"):  # how a tokenizer was once loaded is no part of it
        tokenizer.init_kwargs.pop(loading, None)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # the library lets their owner alone read them
        file.chmod((folder / "config.json").stat().st_mode)
