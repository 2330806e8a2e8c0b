"""One training run, from settings to verdict: what is checked, printed, recorded, saved, resumed and given up."""

import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from mu_sota.common import environment
from mu_sota.common.files import as_json, replacing, write_json
from mu_sota.common.text import duration, timestamp
from mu_sota.data.corpus import Corpus, load_corpus
from mu_sota.data.tokenizer import TOKENIZER_FILE
from mu_sota.data.tokenizer import save as save_tokenizer
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import loss_of, readable
from mu_sota.evaluation.ngram import unigram
from mu_sota.generation.continuation import prompt_ids, sample
from mu_sota.leakcheck.checks import assert_causal
from mu_sota.leakcheck.report import Report
from mu_sota.model import kernels
from mu_sota.model.configuration import MuConfig
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import BEST_FOLDER, METRICS_FILE, RUN_FILE, metrics_rows, recorded
from mu_sota.settings.load import Settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings

from .run_checks import Check, as_text, verdict
from .trainer import BEST_FILE, MuTrainer, Tally

RULE = "=" * 80
_ESTIMATE_AFTER = 5  # steps; the first ones include warm-up of caches and allocators
_HIGH_RATE = 0.01  # higher learning rates than this are never advised
_EXPLODED = 1.5  # times the loss of the first logged steps


class DivergedError(InputError):
    """The loss became infinite, not a number, or far larger than at the start."""


class Interrupted(Exception):
    """The user asked the run to stop; it was saved."""


class Metrics:
    """`metrics.jsonl`: a row every few steps and one an epoch, appended as they come.

    The main process writes; the others only read what the file held when they were told to rewind.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.epochs: list[dict[str, Any]] = []

    def append(self, kind: str, **row: Any) -> None:
        """Add a row."""
        if kind == "epoch":
            self.epochs.append(row)
        if self.writes:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(as_json({"kind": kind, **row}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what came after the checkpoint at `step`: it is about to be done again."""
        rows = []
        if step:
            rows = [row for row in metrics_rows(self.path) if row["step"] <= step]
        self.epochs = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == "epoch"]
        if self.writes:
            with replacing(self.path) as temporary:
                text = "".join(as_json(row) + "\n" for row in rows)
                temporary.write_text(text, encoding="utf-8", newline="\n")


class Conduct(TrainerCallback):
    """When a run evaluates, reports, saves and stops."""

    def __init__(self, trainer: MuTrainer, metrics: Metrics, interrupt: "Interrupt") -> None:
        self.trainer, self.metrics, self.interrupt = trainer, metrics, interrupt
        self.settings = trainer.settings
        self.shown = trainer.is_world_process_zero()
        self.bar: tqdm[Any] | None = None
        self.checked = Tally()
        self.started = self.saved = self.epoch_started = time.monotonic()
        self.started_at_step = 0

    def _say(self, text: str) -> None:
        if self.shown:
            tqdm.write(text)

    def _epoch(self, state: TrainerState) -> int:
        """Number of the epoch that the last step belongs to, counted from 1."""
        return max(math.ceil(state.global_step / self.trainer.steps_per_epoch), 1)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue the record where the checkpoint stands."""
        self.metrics.rewind(state.global_step)
        self.checked = self.trainer.tally()
        self.started = self.saved = time.monotonic()
        self.started_at_step = state.global_step
        if state.global_step:
            self._say(f"Going on after step {state.global_step:,} of {state.max_steps:,}.\n")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch of the window order from the step counter, the one source of where a run stands."""
        epoch, done = divmod(state.global_step, self.trainer.steps_per_epoch)
        self.trainer.order.epoch = epoch
        self.epoch_started = time.monotonic()
        self.bar = tqdm(
            desc=f"Epoch {epoch + 1}/{math.ceil(state.max_steps / self.trainer.steps_per_epoch)} [Train]",
            total=min(self.trainer.steps_per_epoch, state.max_steps - state.global_step + done),
            initial=done,
            disable=not self.shown,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show progress; look for divergence; save from time to time; stop when asked to."""
        step = state.global_step
        if self.bar:
            self.bar.update()
        if step - self.started_at_step == _ESTIMATE_AFTER:
            self._say(self._estimate(state))
        at_epoch_end = step % self.trainer.steps_per_epoch == 0 or step == state.max_steps
        stop, due = self._agreed(
            self.interrupt.received, time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes
        )
        if stop:
            control.should_training_stop = True
        if step % args.logging_steps == 0 or at_epoch_end or stop or due:
            self._check(state)
        if (stop or due) and not at_epoch_end:  # at an epoch's end the checkpoint comes after the evaluation
            self._request_save(control)

    def _agreed(self, *flags: bool) -> list[bool]:
        """Each flag, true everywhere if it is true in any process: their clocks and signals differ."""
        if self.trainer.accelerator.num_processes == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int32, device=self.trainer.args.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def _check(self, state: TrainerState) -> None:
        """Stop if the loss since the last check is not a loss; else show it."""
        tally = self.trainer.tally()
        recent = tally.since(self.checked)
        self.checked = tally
        if not recent.num_tokens:
            return
        loss = recent.loss
        if self.trainer.first_loss is None:
            self.trainer.first_loss = loss
        if not math.isfinite(loss) or loss > _EXPLODED * self.trainer.first_loss:
            raise DivergedError(self._diverged(state.global_step, loss))
        if not self.bar:
            return
        per_step = self._seconds_per_step(state)
        rate = self._tokens_per_second(state)
        left = duration(per_step * (state.max_steps - state.global_step))
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, {rate:,.0f} tok/s, {environment.peak_memory() / 2**30:.1f} GiB, all done in {left}",
            refresh=False,
        )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """A row in `metrics.jsonl` for every logged training loss."""
        logs = event["logs"]
        if "loss" in logs:
            self.metrics.append(
                "step",
                step=state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm"),
                tokens_per_second=round(self._tokens_per_second(state), 1),
            )

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate and save, unless the epoch was interrupted midway."""
        if self.bar:
            self.bar.close()
            self.bar = None
        if state.global_step % self.trainer.steps_per_epoch == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True
            self._request_save(control)

    def _request_save(self, control: TrainerControl) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.trainer.network.parameters()):
            raise DivergedError(self._diverged(self.trainer.state.global_step, math.nan))
        control.should_save = True
        self.saved = time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The epoch's lines, samples, record row and best model."""
        epoch, tally, score = self._epoch(state), self.trainer.tally(), self.trainer.score
        complete = state.global_step % self.trainer.steps_per_epoch == 0
        part = "" if complete else f" (first {state.global_step % self.trainer.steps_per_epoch} steps)"
        self._say(
            f"\nEpoch {epoch}{part}:\n"
            f"  Train: Loss={tally.loss:.4f}, Acc={tally.accuracy:.2%}\n"
            f"  Val: Loss={score.loss:.4f}, Acc={score.accuracy:.2%}, PPL={readable(score.perplexity)}, "
            f"PPL/word={readable(score.word_perplexity)}, bits/byte={score.bits_per_byte:.4f}\n"
            + "".join(f"  ({remark})\n" for remark in score.remarks)
        )
        samples = self._samples(epoch)
        better = all(score.loss < loss_of(row["validation"]) for row in self.metrics.epochs)
        self.metrics.append(
            "epoch",
            epoch=epoch,
            step=state.global_step,
            complete=complete,
            train={"loss": tally.loss, "accuracy": tally.accuracy, "num_tokens": int(tally.num_tokens)},
            validation=score.as_dict(),
            samples=samples,
            seconds=round(time.monotonic() - self.epoch_started, 2),
        )
        if better:
            self.trainer.save_best(epoch, score)
        self.trainer.reset_tally()
        self.checked = Tally()

    def _samples(self, epoch: int) -> list[dict[str, str]]:
        """Continue each prompt, print it, and return what was printed."""
        settings = self.settings
        self._say(f"{RULE}\nTEXT GENERATION TEST - EPOCH {epoch}\n{RULE}")
        samples = []
        for number, prompt in enumerate(settings.prompts):
            text = sample(
                self.trainer.accelerator.unwrap_model(self.trainer.network).eval(),
                self.trainer.tokenizer,
                prompt,
                settings,
                settings.sample_tokens,
                seed=settings.seed + number,
            )
            samples.append({"prompt": prompt, "text": text})
            rule = RULE if number + 1 == len(settings.prompts) else "-" * 80
            self._say(f"  Prompt: {prompt!r}\n  Generated: {text!r}\n{rule}")
        return samples

    def _seconds_per_step(self, state: TrainerState) -> float:
        """Since this start of the run, validation and samples included."""
        return (time.monotonic() - self.started) / (state.global_step - self.started_at_step)

    def _tokens_per_second(self, state: TrainerState) -> float:
        return self.settings.batch_size * self.settings.window / self._seconds_per_step(state)

    def _estimate(self, state: TrainerState) -> str:
        per_step = self._seconds_per_step(state)
        left = state.max_steps - state.global_step
        return (
            f"Estimate: {duration(left * per_step)} to go for {left:,} of {state.max_steps:,} steps "
            f"at {per_step:.2f} s a step, and the time for validation"
        )

    def _diverged(self, step: int, loss: float) -> str:
        first = self.trainer.first_loss
        began = f" (at first it was {first:.4g})" if first is not None and math.isfinite(first) else ""
        lower = f"--set learning_rate={min(self.settings.learning_rate / 2, _HIGH_RATE):g}"
        clip = f"--set max_grad_norm={self.settings.max_grad_norm / 2:g}"
        kept = self.trainer.checkpoints()
        where = f"the last good checkpoint is kept in {kept[-1]}" if kept else "no checkpoint yet"
        return (
            f"the loss became {loss:.4g} at step {step}{began}, so the run stopped; "
            f"start again in another --out with a lower learning rate ({lower}) or harder clipping ({clip}); {where}"
        )


class Interrupt:
    """Ctrl-C or a polite kill: remembered until the step is done. A second one stops at once."""

    def __init__(self) -> None:
        self.received = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            tqdm.write("Stopped without saving: --resume goes on from the last checkpoint.", file=sys.stderr)
            raise KeyboardInterrupt
        self.received = True
        tqdm.write("\nStopping: the step is finished and saved first (again to stop at once) ...", file=sys.stderr)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM until the block ends; outside the main thread Python cannot, and nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def train(preset: str, data: str, out: Path, settings: Settings, resume: bool = False) -> list[Check]:
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
    record = _previous_run(out, data, corpus, identity, resume)
    if resume and not record:
        say(f"There is no run in {out} yet, so this is a new one.\n")
    if "result" in record:
        say(f"The run in {out} is finished. For another one, give another --out.\n{record['result']['text']}")
        return [Check(*check) for check in record["result"]["checks"]]

    precision = choose_precision(settings.run.precision)
    _check_trackers(settings.run.trackers)
    for prompt in settings.run.prompts:  # found unusable now, not after the first epoch
        prompt_ids(corpus.tokenizer, prompt, settings.run.sample_tokens, config.max_position_embeddings)
    floor = unigram(corpus.train, corpus.validation, config.vocab_size)
    micro_batch_size = settings.run.micro_batch_size or default_micro_batch(settings.run, process.num_processes)
    causality = _check_causality(config, settings.run.seed, process.device)
    process.wait_for_everyone()
    if process.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        save_tokenizer(corpus.tokenizer, out / TOKENIZER_FILE)
        source = {"data": data, "data_fingerprint": corpus.fingerprint}
        record = {**identity, **source, "machine": environment.describe(), "precision": precision, **record}
        record["starts"] = [*record.get("starts", []), timestamp()]
        record["unigram"] = floor.as_dict()
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
        f"PPL={readable(floor.perplexity)}, bits/byte={floor.bits_per_byte:.4f}\n"
    )

    metrics, interrupt = Metrics(out / METRICS_FILE, process.is_main_process), Interrupt()
    started = time.monotonic()
    with interrupt.listening():
        while True:
            set_seed(settings.run.seed)
            trainer = MuTrainer(
                MuForCausalLM(config), corpus.tokenizer, corpus, windows, settings.run, out, micro_batch_size, precision
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(Conduct(trainer, metrics, interrupt))
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
    checks = verdict(metrics.epochs, trainer.state.max_steps, loads, floor.perplexity)
    best = min(metrics.epochs, key=lambda row: loss_of(row["validation"]))
    text = (
        f"{RULE}\nVERDICT\n{RULE}\n{as_text(checks)}\n"
        f"  Best epoch {best['epoch']}: PPL={readable(best['validation']['perplexity'])}, "
        f"PPL/word={readable(best['validation']['word_perplexity'])}, "
        f"bits/byte={readable(best['validation']['bits_per_byte'], 4)} on validation "
        f"(unigram model: PPL={readable(floor.perplexity)}, bits/byte={floor.bits_per_byte:.4f})\n"
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


def _check_causality(config: MuConfig, seed: int, device: torch.device) -> Report:
    """Refuse to train a model that sees what it is asked to predict, before anything is written."""
    set_seed(seed)
    return assert_causal(torch.nn.Module.to(MuForCausalLM(config), device))


def _previous_run(out: Path, data: str, corpus: Corpus, identity: dict[str, Any], resume: bool) -> dict[str, Any]:
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


def _check_trackers(trackers: list[str]) -> None:
    for tracker in trackers:
        try:
            for callback in get_reporting_integration_callbacks([tracker]):
                callback()
        except (ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the tracker {tracker!r} cannot be used: {reason}; install it, or leave it out") from None


def _or_not_set(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _remove_leftovers(out: Path) -> None:
    """Temporary folders of a run that was killed while it wrote one of its own files."""
    for name in (BEST_FILE, BEST_FOLDER, TOKENIZER_FILE, METRICS_FILE, RUN_FILE, "checkpoint-*"):
        for leftover in out.glob(f".{name}.tmp*"):
            shutil.rmtree(leftover)


def default_micro_batch(settings: RunSettings, processes: int) -> int:
    """Sequences at once in a process, before the memory has had its say."""
    share = math.ceil(settings.batch_size / processes)
    return share if torch.cuda.is_available() else min(share, 16)


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
