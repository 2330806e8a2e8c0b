"""What is checked and chosen before a run trains."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.integrations import get_reporting_integration_callbacks

from mu_sota.data.corpus import Corpus
from mu_sota.data.tokenizer import TOKENIZER_FILE
from mu_sota.leakcheck.checks import assert_causal
from mu_sota.leakcheck.report import Report
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import BEST_FOLDER, METRICS_FILE, RUN_FILE, recorded
from mu_sota.settings.run import RunSettings

from .trainer import BEST_FILE


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


def fitted_to_tokenizer(config: MuConfig, corpus: Corpus) -> MuConfig:
    """The configuration with the vocabulary and special tokens that the corpus really has."""
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


def check_causality(config: MuConfig, seed: int, device: torch.device) -> Report:
    """Refuse to train a model that sees what it is asked to predict, before anything is written."""
    set_seed(seed)
    return assert_causal(torch.nn.Module.to(MuForCausalLM(config), device))


def previous_run(out: Path, data: str, corpus: Corpus, identity: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The record of the run in `out` to be resumed, or nothing."""
    if not (out / RUN_FILE).exists():
        return {}
    if not resume:
        raise InputError(f"{out} already holds a run; add --resume to go on with it, or give another --out")
    record = recorded(out)
    if record["data_fingerprint"] != corpus.fingerprint:
        raise InputError(
            f"the run in {out} was started on {record['data']!r}, and {data!r} now gives other text or tokens; "
            f"resume it with its own data, or give another --out"
        )
    for part, now in identity.items():
        # The parts are plain values or dictionaries of them.
        ours = now if isinstance(now, dict) else {part: now}
        theirs = record[part] if isinstance(now, dict) else record
        for key, new in ours.items():
            if (old := theirs.get(key)) != new:
                raise InputError(
                    f"the run in {out} was started with {key} {_or_not_set(old)}, not {_or_not_set(new)}; "
                    f"resume it with its own settings, or give another --out"
                )
    return record


def check_trackers(trackers: list[str]) -> None:
    for tracker in trackers:
        try:
            for callback in get_reporting_integration_callbacks([tracker]):
                callback()
        except (ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the tracker {tracker!r} cannot be used: {reason}; install it, or leave it out") from None


def _or_not_set(value: Any) -> str:
    return "not set" if value is None else repr(value)


def remove_leftovers(out: Path) -> None:
    """Temporary folders of a run that was killed while it wrote one of its own files."""
    for name in (BEST_FILE, BEST_FOLDER, TOKENIZER_FILE, METRICS_FILE, RUN_FILE, "checkpoint-*"):
        for leftover in out.glob(f".{name}.tmp*"):
            shutil.rmtree(leftover)


def default_micro_batch(settings: RunSettings, processes: int) -> int:
    """Sequences at once in a process, before the memory has had its say."""
    share = math.ceil(settings.batch_size / processes)
    return share if torch.cuda.is_available() else min(share, 16)
