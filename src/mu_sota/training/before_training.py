"""What is checked and chosen before a run trains and before it writes anything."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from mu_sota.data.corpus import Corpus
from mu_sota.data.tokenizer import TOKENIZER_FILE
from mu_sota.generation.continuation import prompt_ids
from mu_sota.leakcheck.checks import assert_causal
from mu_sota.leakcheck.report import Report
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.load_save import load_trained
from mu_sota.saved.run_record import (
    BEST_FILE,
    BEST_FOLDER,
    LOCK_FILE,
    METRICS_FILE,
    RUN_FILE,
    refuse_existing_run,
    resumable,
)
from mu_sota.settings.run import RunSettings

from .lr_schedule import Part


def fitted_to_tokenizer(config: MuConfig, corpus: Corpus) -> MuConfig:
    """The configuration with the vocabulary size and the special tokens of the corpus's tokenizer."""
    tokenizer = corpus.tokenizer
    return MuConfig(
        **{
            **config.to_diff_dict(),
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    )


def previous_run(
    out: Path, data: str, corpus: Corpus, identity: dict[str, Any], resume: bool, steps_per_epoch: int
) -> dict[str, Any]:
    """The record of the run in `out` that is to be resumed, or nothing.

    Args:
        out: folder of the run.
        data: name of the text, as the user gave it now.
        corpus: what that name gives now.
        identity: the parts of the record that must be as they were: plain values, or dictionaries of them.
        resume: the user asked for it.
        steps_per_epoch: now, and then.

    Raises:
        InputError: `out` holds a run that is not to be resumed, or was started with other data or settings.
    """
    refuse_existing_run(out, resume)
    record = resumable(out)
    if not record:
        return {}
    if "schedule" not in record:  # of a version that knew no other
        old = record["settings"]
        steps = old["max_steps"] or old["num_epochs"] * steps_per_epoch
        record["schedule"] = [Part(steps, "cycle")._asdict()]
    if record["data_fingerprint"] != corpus.fingerprint:
        raise InputError(
            f"the run in {out} was started on {record['data']!r}, and {data!r} now gives other text or tokens; "
            f"resume it with its own data, or give another --out"
        )
    for part, now in identity.items():
        new_values = now if isinstance(now, dict) else {part: now}
        old_values = record[part] if isinstance(now, dict) else record
        for key, new in new_values.items():
            # A run of an earlier version has the form that fields it did not know have by default.
            if (old := old_values.get(key, _by_default(key))) != new:
                raise InputError(
                    f"the run in {out} was started with {key} {_or_not_set(old)}, not {_or_not_set(new)}; "
                    f"resume it with its own settings, or give another --out"
                )
    return record


def choose_precision(precision: str) -> str:
    """`auto` resolved for this machine.

    Raises:
        InputError: fp16 without a CUDA GPU; it needs loss scaling there.
    """
    if precision == "auto":
        if not torch.cuda.is_available():
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision is 'fp16', which needs a CUDA GPU; use --set precision=fp32 or bf16")
    return precision


def _by_default(key: str) -> Any:
    field = RunSettings.model_fields.get(key)
    return getattr(MuConfig, key, None) if field is None else field.default


def check_labels(settings: RunSettings) -> None:
    """Refuse a folder of labelled texts that is not there, and a run that asks for word lists which are not installed.

    Raises:
        InputError: one of both.
    """
    if settings.labels is not None or settings.grounding:
        from mu_sota.inspection.lexicons import refuse_missing

        refuse_missing()
    if settings.labels is not None and not Path(settings.labels).is_dir():
        raise InputError(f"the setting labels is {settings.labels!r}, which is no folder; give one of labelled texts")


def default_micro_batch(settings: RunSettings, processes: int) -> int:
    """Sequences at once in a process, before it is known whether the memory holds them."""
    share = math.ceil(settings.batch_size / processes)
    return share if torch.cuda.is_available() else min(share, 16)


def check_trackers(trackers: list[str]) -> None:
    """Start every tracker once.

    Raises:
        InputError: one is unknown or not installed.
    """
    for tracker in trackers:
        try:
            for callback in get_reporting_integration_callbacks([tracker]):
                callback()
        except (ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the tracker {tracker!r} cannot be used: {reason}; install it, or leave it out") from None


def check_prompts(settings: RunSettings, tokenizer: PreTrainedTokenizerFast, config: MuConfig) -> None:
    """Find prompts that are too long now, not after the first epoch.

    Raises:
        InputError: a prompt and its new tokens exceed the model's positions.
    """
    for prompt in settings.prompts:
        prompt_ids(tokenizer, prompt, settings.sample_tokens, config.max_position_embeddings)


def check_init_from(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse the weights of a model to which the tokens of this text would mean nothing.

    Raises:
        InputError: the folder holds no MU model, or one with another tokenizer.
    """
    if load_trained(folder)[1].get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the model in {folder} has another tokenizer than this text is prepared with, so that its tokens would "
            f"mean nothing to it: leave out --tokenizer, and give the text itself as --data"
        )


def new_model(config: MuConfig, seed: int, init_from: Path | None) -> MuForCausalLM:
    """A new model on the CPU, with the weights of a trained one if its folder is given.

    Raises:
        InputError: the folder holds no MU model, or one of another form.
    """
    set_seed(seed)
    model = MuForCausalLM(config)
    if init_from is not None:
        try:
            model.load_state_dict(load_trained(init_from)[0].state_dict())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the model in {init_from} has another form than the settings say: {reason}") from None
    return model


def build_causal_model(
    config: MuConfig, seed: int, device: torch.device, init_from: Path | None = None
) -> tuple[MuForCausalLM, Report]:
    """A new model that has passed the leak check, on `device`, and the report of the check.

    Raises:
        LeakError: the model sees the token that it is asked to predict.
        InputError: as `new_model`.
    """
    model = new_model(config, seed, init_from)
    return model, assert_causal(torch.nn.Module.to(model, device))


def planned_parts(out: Path, record: dict[str, Any], repeated: tuple[dict[str, Any], ...], planned: Part) -> list[Part]:
    """The parts of the schedule: those that the run in `out` had, and one more if it is made longer.

    Args:
        out: folder of the run.
        record: of the run that is resumed, or nothing.
        repeated: the schedule of a run that a new one repeats.
        planned: the end that the settings give, and the shape of the steps that are new.

    Raises:
        InputError: the run would become shorter, or have another shape.
    """
    if not record:
        parts = [Part(**part) for part in repeated]
        return parts if parts and parts[-1].end == planned.end else [planned]
    parts = [Part(**part) for part in record["schedule"]]
    if planned.end > parts[-1].end:
        return [*parts, planned]
    if planned.end < parts[-1].end:
        raise InputError(
            f"the run in {out} has {parts[-1].end:,} steps, and cannot be made shorter: {planned.end:,} are asked for; "
            f"resume it with its own --epochs and --max-steps, or more"
        )
    if planned.shape != parts[-1].shape:
        raise InputError(
            f"the run in {out} was started with schedule {parts[-1].shape!r}, not {planned.shape!r}; resume it with "
            f"its own settings, or make it longer with --epochs, or give another --out"
        )
    return parts


def remove_leftovers(out: Path) -> None:
    """Remove the temporary folders of a run that was killed while it wrote one of its own files."""
    for name in (BEST_FILE, BEST_FOLDER, TOKENIZER_FILE, METRICS_FILE, RUN_FILE, f"{LOCK_FILE}.json", "checkpoint-*"):
        for leftover in out.glob(f".{name}.tmp*"):
            shutil.rmtree(leftover)


def _or_not_set(value: Any) -> str:
    return "not set" if value is None else repr(value)
