"""When a training run saves, stops, logs, evaluates and samples.

`CheckpointCallback` is for every training run, those of a comparison too; `RunCallback` is for `mu-sota train`.
"""

import math
import time
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mu_sota.common.text import RULE, readable
from mu_sota.generation.continuation import sample
from mu_sota.saved.run_record import loss_of

from .best_model import save_best
from .divergence import stop_if_diverged
from .interrupt import Interrupt
from .metrics_file import MetricsFile
from .progress_bar import ProgressBar
from .running_totals import RunningTotals
from .trainer import MuTrainer


class CheckpointCallback(TrainerCallback):
    """Sets the epoch of the window order, saves a checkpoint when one is due, and stops the run when asked to.

    Args:
        trainer: of the run.
        interrupt: asks the run to stop.
    """

    def __init__(self, trainer: MuTrainer, interrupt: Interrupt) -> None:
        self.trainer, self.interrupt = trainer, interrupt
        self.saved_at = time.monotonic()
        self.covered = RunningTotals()  # by `new_totals`

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock of checkpoints."""
        self.saved_at = time.monotonic()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch of the window order from the step counter, which alone says how far a run is."""
        self.trainer.order.epoch = state.global_step // self.trainer.steps_per_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save if a checkpoint is due; save and stop if asked to."""
        minutes = (time.monotonic() - self.saved_at) / 60
        stop, due = self._in_any_process(self.interrupt.received, minutes > self.trainer.settings.checkpoint_minutes)
        if stop:
            control.should_training_stop = True
        if (stop or due) and not self.saves_later(state):
            self.request_save(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restart the clock of checkpoints."""
        self.saved_at = time.monotonic()

    def saves_later(self, state: TrainerState) -> bool:
        """True after a step that needs no checkpoint of its own."""
        return state.global_step == state.max_steps

    def request_save(self, state: TrainerState, control: TrainerControl) -> None:
        """Have the trainer write a checkpoint."""
        control.should_save = True

    def new_totals(self) -> RunningTotals:
        """The running totals since the last call. Every process must call it."""
        totals = self.trainer.running_totals()
        new = totals.since(self.covered)
        self.covered = totals
        return new

    def _in_any_process(self, *flags: bool) -> list[bool]:
        """Each flag, true everywhere if it is true in any process: their clocks and signals differ."""
        if self.trainer.accelerator.num_processes == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int32, device=self.trainer.args.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]


class RunCallback(CheckpointCallback):
    """Shows and logs a run, stops it if it diverges, and evaluates, samples and saves after every epoch.

    Args:
        trainer, interrupt: as in `CheckpointCallback`.
        metrics: gets the rows.
    """

    def __init__(self, trainer: MuTrainer, interrupt: Interrupt, metrics: MetricsFile) -> None:
        super().__init__(trainer, interrupt)
        self.metrics, self.progress = metrics, ProgressBar(trainer)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue the record after the rows that the checkpoint knows."""
        super().on_train_begin(args, state, control)
        self.metrics.rewind(state.global_step)
        self.new_totals()
        self.progress.start(state)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show a new bar."""
        super().on_epoch_begin(args, state, control)
        self.epoch_started = time.monotonic()
        self.progress.start_epoch(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the step; check the loss when it is logged."""
        self.progress.step(state)
        if state.global_step % args.logging_steps == 0 or self.saves_later(state):
            self._check_loss(state)
        super().on_step_end(args, state, control)

    def saves_later(self, state: TrainerState) -> bool:
        """At the end of an epoch, where the checkpoint comes after the evaluation."""
        return state.global_step % self.trainer.steps_per_epoch == 0 or super().saves_later(state)

    def request_save(self, state: TrainerState, control: TrainerControl) -> None:
        """Save, unless the loss or a weight has diverged."""
        self._check_loss(state)
        if not all(torch.isfinite(parameter).all() for parameter in self.trainer.network.parameters()):
            stop_if_diverged(self.trainer, math.nan)
        super().request_save(state, control)

    def _check_loss(self, state: TrainerState) -> None:
        """Look at the loss since the last look: stop if it has diverged, else show it."""
        new = self.new_totals()
        if not new.num_tokens:
            return
        if self.trainer.first_loss is None:
            self.trainer.first_loss = new.loss
        stop_if_diverged(self.trainer, new.loss)
        self.progress.show_loss(state, new.loss)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Write a row for every logged training loss."""
        logs = event["logs"]
        if "loss" in logs:
            self.metrics.append(
                "step",
                step=state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm"),
                tokens_per_second=round(self.progress.tokens_per_second(state), 1),
            )

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate and save, unless the run was interrupted within the epoch."""
        self.progress.end_epoch()
        if self.saves_later(state):
            control.should_evaluate = True
            self.request_save(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print the epoch's scores and samples, write its row, and save the model if it is the best so far."""
        totals, score = self.trainer.running_totals(), self.trainer.score
        epoch = max(math.ceil(state.global_step / self.trainer.steps_per_epoch), 1)
        steps = state.global_step % self.trainer.steps_per_epoch
        self.progress.say(
            f"\nEpoch {epoch}{f' (first {steps} steps)' if steps else ''}:\n"
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
            complete=not steps,
            train={"loss": totals.loss, "accuracy": totals.accuracy, "num_tokens": int(totals.num_tokens)},
            validation=score.as_dict(),
            samples=samples,
            seconds=round(time.monotonic() - self.epoch_started, 2),
        )
        if better:
            save_best(self.trainer, epoch, score)
        self.trainer.reset_running_totals()
        self.covered = RunningTotals()

    def _samples(self, epoch: int) -> list[dict[str, str]]:
        """Continue each prompt, print it, and return what was printed."""
        settings = self.trainer.settings
        self.progress.say(f"{RULE}\nTEXT GENERATION TEST - EPOCH {epoch}\n{RULE}")
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.network).eval()
        samples = []
        for number, prompt in enumerate(settings.prompts):
            tokenizer, seed = self.trainer.corpus.tokenizer, settings.seed + number
            with self.trainer.uncompiled():
                text = sample(model, tokenizer, prompt, settings, settings.sample_tokens, seed=seed)
            samples.append({"prompt": prompt, "text": text})
            rule = RULE if number + 1 == len(settings.prompts) else "-" * 80
            self.progress.say(f"  Prompt: {prompt!r}\n  Generated: {text!r}\n{rule}")
        return samples
