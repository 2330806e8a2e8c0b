"""When a run evaluates, reports, saves and stops."""

import math
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mu_sota.common import environment
from mu_sota.common.text import duration, readable
from mu_sota.generation.continuation import sample
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import loss_of

from .interrupt import Interrupt
from .metrics_file import MetricsFile
from .running_totals import RunningTotals
from .trainer import MuTrainer

RULE = "=" * 80
_ESTIMATE_AFTER = 5  # steps; the first ones include warm-up of caches and allocators
_HIGH_RATE = 0.01  # higher learning rates than this are never advised
_EXPLODED = 1.5  # times the loss of the first logged steps


class DivergedError(InputError):
    """The loss became infinite, not a number, or far larger than at the start."""


class RunCallback(TrainerCallback):
    """When a run evaluates, reports, saves and stops."""

    def __init__(self, trainer: MuTrainer, metrics: MetricsFile, interrupt: "Interrupt") -> None:
        self.trainer, self.metrics, self.interrupt = trainer, metrics, interrupt
        self.settings = trainer.settings
        self.shown = trainer.is_world_process_zero()
        self.bar: tqdm[Any] | None = None
        self.checked = RunningTotals()
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
        self.checked = self.trainer.running_totals()
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
        totals = self.trainer.running_totals()
        recent = totals.since(self.checked)
        self.checked = totals
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
        epoch, totals, score = self._epoch(state), self.trainer.running_totals(), self.trainer.score
        complete = state.global_step % self.trainer.steps_per_epoch == 0
        part = "" if complete else f" (first {state.global_step % self.trainer.steps_per_epoch} steps)"
        self._say(
            f"\nEpoch {epoch}{part}:\n"
            f"  Train: Loss={totals.loss:.4f}, Acc={totals.accuracy:.2%}\n"
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
            train={"loss": totals.loss, "accuracy": totals.accuracy, "num_tokens": int(totals.num_tokens)},
            validation=score.as_dict(),
            samples=samples,
            seconds=round(time.monotonic() - self.epoch_started, 2),
        )
        if better:
            self.trainer.save_best(epoch, score)
        self.trainer.reset_running_totals()
        self.checked = RunningTotals()

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
