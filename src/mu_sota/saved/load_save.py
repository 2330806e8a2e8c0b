"""A trained model in a folder: opened with its tokenizer, and saved."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from mu_sota.data.tokenizer import load_tokenizer
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.sampling import Sampling

from .run_record import model_folder


def load_trained(
    folder: str | Path, device: torch.device | None = None
) -> tuple[MuForCausalLM, PreTrainedTokenizerFast]:
    """Model in eval mode and tokenizer of a run's folder (its best epoch) or of any folder in Hugging Face layout.

    The model is on `device`, by default the CPU.

    Raises:
        InputError: the folder is missing, or holds no MU model.
    """
    best = model_folder(Path(folder))
    try:
        kind = json.loads((best / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != MuConfig.model_type:
            raise InputError(f"{best} holds a model of type {kind!r}, not a MU model ({MuConfig.model_type!r})")
        loaded: Any = MuForCausalLM.from_pretrained(best, output_loading_info=True)
        model: MuForCausalLM = loaded[0]
        loading: dict[str, Any] = loaded[1]
        wrong = sorted(key for part in ("missing_keys", "unexpected_keys") for key in loading[part])
        if wrong:
            raise InputError(f"the weights in {best} do not fit its config.json: {', '.join(wrong[:3])} ...")
        tokenizer = load_tokenizer(best)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"the model in {best} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    tokenizer.model_max_length = model.config.max_position_embeddings  # older runs did not save it
    torch.nn.Module.to(model, device)
    return model.eval(), tokenizer


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
    drawn = sampling.model_dump(exclude=set() if sampling.temperature else {"temperature", "top_k", "top_p"})
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
