"""One training run, from settings to verdict: what is checked, printed, recorded, saved, resumed and given up."""

import time
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PrinterCallback, set_seed

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.common.text import readable, timestamp
from mu_sota.data.corpus import Corpus, load_corpus
from mu_sota.data.tokenizer import TOKENIZER_FILE
from mu_sota.data.tokenizer import save as save_tokenizer
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.ngram import unigram
from mu_sota.generation.continuation import prompt_ids
from mu_sota.model import kernels
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import BEST_FOLDER, METRICS_FILE, RUN_FILE, loss_of
from mu_sota.settings.load import Settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings

from .before_training import (
    check_causality,
    check_trackers,
    choose_precision,
    default_micro_batch,
    fitted_to_tokenizer,
    previous_run,
    remove_leftovers,
)
from .callbacks import RULE, RunCallback
from .interrupt import Interrupt, Interrupted
from .metrics_file import MetricsFile
from .run_checks import RunCheck, as_text, judge_run
from .trainer import BEST_FILE, MuTrainer


def train(preset: str, data: str, out: Path, settings: Settings, resume: bool = False) -> list[RunCheck]:
    """Train a model and leave in `out` all that RUN needs: see `docs/run-instructions.md`.

    Returns:
        The verdict on the run, which has been printed too.

    Raises:
        InputError: unusable settings or data, a run that is there already, a leak, a diverged loss, too little memory.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    process = PartialState(cpu=not torch.accelerator.is_available())  # or it overlooks the other CPU processes
    say = print if process.is_main_process else _silent

    with process.main_process_first():
        corpus = load_corpus(data, tokenizer=settings.run.tokenizer, vocab_size=settings.model.vocab_size)
    windows = TrainWindows(corpus.train.tokens, settings.run.window, settings.run.stride)
    config = fitted_to_tokenizer(settings.model, corpus)
    identity = {
        "preset": preset,
        "settings": settings.run.model_dump(exclude={"micro_batch_size", "log_steps", "checkpoint_minutes"}),
        "model": {key: getattr(config, key) for key in MODEL_KEYS},
    }
    record = previous_run(out, data, corpus, identity, resume)
    if resume and not record:
        say(f"There is no run in {out} yet, so this is a new one.\n")
    if "result" in record:
        say(f"The run in {out} is finished. For another one, give another --out.\n{record['result']['text']}")
        return [RunCheck(*check) for check in record["result"]["checks"]]

    precision = choose_precision(settings.run.precision)
    check_trackers(settings.run.trackers)
    for prompt in settings.run.prompts:  # found unusable now, not after the first epoch
        prompt_ids(corpus.tokenizer, prompt, settings.run.sample_tokens, config.max_position_embeddings)
    unigram_score = unigram(corpus.train, corpus.validation, config.vocab_size)
    micro_batch_size = settings.run.micro_batch_size or default_micro_batch(settings.run, process.num_processes)
    causality = check_causality(config, settings.run.seed, process.device)
    process.wait_for_everyone()
    if process.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        save_tokenizer(corpus.tokenizer, out / TOKENIZER_FILE)
        source = {"data": data, "data_fingerprint": corpus.fingerprint}
        record = {**identity, **source, "machine": environment.describe(), "precision": precision, **record}
        record["starts"] = [*record.get("starts", []), timestamp()]
        record["unigram"] = unigram_score.as_dict()
        record["causality"] = causality.as_dict()
        record["settings"] = settings.run.model_dump()
        # As asked for: `model` holds the vocabulary that the text gave.
        model = {key: getattr(settings.model, key) for key in MODEL_KEYS}
        record["requested"] = record["settings"] | model
        write_json(out / RUN_FILE, record)
    say(_heading(preset, config, corpus, settings.run, precision, process))
    say(f"Causality: {causality.summary()}")
    say(
        f"Unigram model on the same validation tokens: "
        f"PPL={readable(unigram_score.perplexity)}, bits/byte={unigram_score.bits_per_byte:.4f}\n"
    )

    metrics, interrupt = MetricsFile(out / METRICS_FILE, process.is_main_process), Interrupt()
    started = time.monotonic()
    with interrupt.listening():
        while True:
            set_seed(settings.run.seed)
            trainer = MuTrainer(
                MuForCausalLM(config), corpus.tokenizer, corpus, windows, settings.run, out, micro_batch_size, precision
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(RunCallback(trainer, metrics, interrupt))
            try:
                trainer.continue_from_last_checkpoint()
                break
            except (RuntimeError, MemoryError) as error:
                micro_batch_size = _after_out_of_memory(error, micro_batch_size, process.num_processes)
                say(f"Out of memory: going on with {micro_batch_size} at once, the same batches in parts.")
            # The trainer and its callbacks hold each other, and the memory that is short.
            del trainer
            environment.release_memory()
    if trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f"saved at step {trainer.state.global_step:,} of {trainer.state.max_steps:,}")

    loads = process.is_main_process and best_loads(out)
    checks = judge_run(metrics.epochs, trainer.state.max_steps, loads, unigram_score.perplexity)
    best = min(metrics.epochs, key=lambda row: loss_of(row["validation"]))
    text = (
        f"{RULE}\nVERDICT\n{RULE}\n{as_text(checks)}\n"
        f"  Best epoch {best['epoch']}: PPL={readable(best['validation']['perplexity'])}, "
        f"PPL/word={readable(best['validation']['word_perplexity'])}, "
        f"bits/byte={readable(best['validation']['bits_per_byte'], 4)} on validation "
        f"(unigram model: PPL={readable(unigram_score.perplexity)}, bits/byte={unigram_score.bits_per_byte:.4f})\n"
        f"  Files in {out}: {BEST_FILE}, {BEST_FOLDER}/, {TOKENIZER_FILE}, {METRICS_FILE}, {RUN_FILE}\n"
        f"  Next: mu-sota generate {out} --prompt 'Once upon a time'"
    )
    say(text)
    if process.is_main_process:
        record["result"] = {
            "finished": timestamp(),
            "seconds_of_last_start": round(time.monotonic() - started, 1),
            "peak_memory_bytes": environment.peak_memory(),
            "best": best,
            "checks": checks,
            "text": text,
        }
        write_json(out / RUN_FILE, record)
    return checks


def best_loads(out: Path) -> bool:
    """Whether both files of the best model load and hold the same weights."""
    try:
        content = torch.load(out / BEST_FILE, weights_only=True, map_location="cpu")
        ours = MuForCausalLM(MuConfig(**content["config"]))
        ours.load_state_dict(content["model"])
        theirs = MuForCausalLM.from_pretrained(out / BEST_FOLDER).state_dict()
        return all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    except Exception:  # whatever a damaged file provokes, the answer is no
        return False


def _after_out_of_memory(error: Exception, micro_batch_size: int, processes: int) -> int:
    """Half the micro-batch, or an error that says which setting to lower; any other error is raised again."""
    if not environment.is_out_of_memory(error):
        raise error
    if processes > 1:  # the others are waiting for a process that will not come
        raise InputError(
            f"out of memory with {micro_batch_size} sequences at once: lower it with "
            f"--set micro_batch_size={max(micro_batch_size // 2, 1)}: the same batches, in more parts"
        ) from error
    if micro_batch_size == 1:
        raise InputError(
            "out of memory with a single sequence at once: lower window, num_hidden_layers or matrix_size with --set"
        ) from error
    return micro_batch_size // 2


def _kernels(process: PartialState, precision: str) -> str:
    """Which code does the work on a CPU."""
    if process.device.type != "cpu":
        return ""
    if precision != "fp32":
        return ", PyTorch's kernels (those of mu-sota, several times as fast, are for fp32)"
    if kernels.library() is None:
        return ", PyTorch's kernels (a C++ compiler, such as g++, makes training several times as fast)"
    return ", compiled kernels"


def _heading(
    preset: str, config: MuConfig, corpus: Corpus, settings: RunSettings, precision: str, process: PartialState
) -> str:
    with torch.device("meta"):
        parameters = MuForCausalLM(config).num_parameters()
    where = process.device.type if process.num_processes == 1 else f"{process.num_processes} x {process.device.type}"
    if process.num_processes == 1 and torch.cuda.device_count() > 1:
        where += f" (1 of {torch.cuda.device_count()}; all of them: torchrun --nproc-per-node gpu -m mu_sota ...)"
    return (
        f"MU-SOTA, preset {preset}: {parameters:,} parameters, {config.num_hidden_layers} layers, "
        f"{config.matrix_size}x{config.matrix_size} state, {config.vocab_size:,} tokens, on {where} in {precision}"
        f"{_kernels(process, precision)}\n"
        f"Data {corpus.source}: {corpus.train.n_predicted:,} training tokens, "
        f"{corpus.validation.n_predicted:,} validation tokens; windows of {settings.window}, "
        f"batch {settings.batch_size}"
    )


def _silent(*_: object) -> None:
    """The other processes say nothing."""
