"""A trained model in a folder: load it with its tokenizer, and sample text from it."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from mu_sota.data import tokenizer as tokenizers
from mu_sota.evaluation.metrics import loss_of
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError, cut
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.load import Sampling

BEST_FOLDER = "best"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


def recorded(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder, or nothing.

    Raises:
        InputError: the record cannot be read.
    """
    record = folder / RUN_FILE
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"the record {record} is damaged ({error}); move it away to do without it") from None


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the run that a folder is, or whose best model it holds, or nothing."""
    return recorded(_run_of(folder))


def metrics_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]  # a kill can leave half a last line


def best_epoch(folder: Path) -> dict[str, Any] | None:
    """Of the same run, the row of its metrics for the epoch that `best/` holds, or None."""
    epochs = [row for row in metrics_rows(_run_of(folder) / METRICS_FILE) if row["kind"] == "epoch"]
    return min(epochs, key=lambda row: loss_of(row["validation"]), default=None)


def _run_of(folder: Path) -> Path:
    return folder.parent if folder.name == BEST_FOLDER else folder


def load_trained(
    folder: str | Path, device: torch.device | None = None
) -> tuple[MuForCausalLM, PreTrainedTokenizerFast]:
    """Model in eval mode and tokenizer of a run's folder (its best epoch) or of any folder in Hugging Face layout.

    The model is on `device`, by default the CPU.

    Raises:
        InputError: the folder is missing, or holds no MU model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the --out of a training run, or its best/ folder")
    best = folder / BEST_FOLDER if (folder / BEST_FOLDER / "config.json").exists() else folder
    if not (best / "config.json").exists():
        raise InputError(
            f"{folder} holds no trained model: neither best/config.json nor config.json is there; "
            f"a run writes best/ after its first epoch"
        )
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
        tokenizer = tokenizers.load(best)
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


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, max_new_tokens: int, positions: int) -> list[int]:
    """Token ids of a prompt; of an empty one, the beginning of a text.

    Raises:
        InputError: prompt and new tokens together exceed the model's positions.
    """
    ids: list[int] = tokenizers.encode(tokenizer, prompt).tolist() or [tokenizer.bos_token_id]
    if len(ids) + max_new_tokens > positions:
        raise InputError(
            f"the prompt {cut(prompt)!r} has {len(ids)} tokens and {max_new_tokens} more are asked for, but the model "
            f"has {positions} positions; shorten the prompt, or ask for fewer tokens"
        )
    return ids


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    ids: list[int],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    **more: Any,
) -> list[int]:
    """The ids and up to `max_new_tokens` more; the same seed gives the same ones. Global random state is untouched.

    Args:
        ids: as `prompt_ids` gives them.
        more: for `model.generate`, such as a streamer.

    Raises:
        InputError: the model's predictions are not numbers.
    """
    device = model.device
    inputs = torch.tensor([ids], device=device)
    # `generate` warns of settings of sampling where nothing is sampled.
    drawn = sampling.model_dump(include={"temperature", "top_k", "top_p"}) if sampling.temperature else {}
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_fork_type(device)):
        torch.manual_seed(seed)
        try:
            output = model.generate(  # type: ignore[operator]
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                do_sample=bool(drawn),
                repetition_penalty=sampling.repetition_penalty,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **drawn,
                **more,
            )
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise InputError(
                "the model's predictions are not numbers, so no token can be drawn; its weights are damaged, or its "
                "training diverged: use another checkpoint"
            ) from error
    return list(output[0].tolist())


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Text of token ids, without the marks of beginning and end."""
    # The word vocabulary's special tokens, <unk> and <eos>, are words of its text.
    return str(tokenizer.decode(ids, skip_special_tokens=not tokenizers.is_word_level(tokenizer)))


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
) -> str:
    """The prompt and its sampled continuation, as `continued` makes it.

    Raises:
        InputError: prompt and new tokens together exceed the model's positions.
    """
    ids = prompt_ids(tokenizer, prompt, max_new_tokens, model.config.max_position_embeddings)
    return text_of(tokenizer, continued(model, tokenizer, ids, sampling, max_new_tokens, seed))


def _fork_type(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
