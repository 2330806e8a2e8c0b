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
from .divergence import stop_at_bad_step, stop_if_diverged
from .interrupt import Interrupt
from .metrics_file import MetricsFile
from .progress_bar import ProgressBar
from .running_totals import RunningTotals
from .step_watch import MOST_IN_A_ROW, Judged, first_not_finite
from .trainer import MuTrainer


class CheckpointCallback(TrainerCallback):
    """Sets the epoch of the window order, has steps judged, saves checkpoints when due, and stops when asked to.

    Args:
        trainer: of the run.
        interrupt: asks the run to stop.
    """

    def __init__(self, trainer: MuTrainer, interrupt: Interrupt) -> None:
        self.trainer, self.interrupt = trainer, interrupt
        self.saved_at = time.monotonic()
        self.covered = RunningTotals()  # by `new_totals`

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock of checkpoints; log as often as this call says, not as the checkpoint does."""
        self.saved_at = time.monotonic()
        self.trainer.start_clock()
        state.logging_steps = int(args.logging_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin the sums of the step."""
        self.trainer.watch.begin(args.device)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Judge the step before it changes the weights."""
        self.trainer.judge_step()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch of the window order from the step counter, which alone says how far a run is."""
        self.trainer.order.epoch = state.global_step // self.trainer.steps_per_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell of steps that were not as usual; save if a checkpoint is due; save and stop if asked to."""
        self._tell_unusual(control, all_of_them=False)
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
        self._tell_unusual(control, all_of_them=True)
        control.should_save = True

    def _tell_unusual(self, control: TrainerControl, all_of_them: bool) -> None:
        for judged in self.trainer.watch.found(all_of_them):
            self.tell_unusual(judged, control)

    def tell_unusual(self, judged: Judged, control: TrainerControl) -> None:
        """What to do about a step that was not as usual."""

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
        self.skipped: list[int] = []  # steps
        self.ended_early = False
        trainer.more_progress = lambda: {"ended_early": trainer.state.max_steps if self.ended_early else None}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue the record after the rows that the checkpoint knows."""
        super().on_train_begin(args, state, control)
        self.ended_early = self.trainer.progress.get("ended_early") == state.max_steps
        if differs := self.metrics.rewind(state.global_step, self.trainer.checkpoint):
            self.progress.say(differs)
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
        every = self.trainer.settings.eval_steps
        if every and state.global_step % every == 0 and not self.saves_later(state):
            control.should_evaluate = True

    def saves_later(self, state: TrainerState) -> bool:
        """At the end of an epoch or of the run, where the checkpoint comes after the evaluation."""
        at_end = state.global_step % self.trainer.steps_per_epoch == 0 or self.ended_early
        return at_end or super().saves_later(state)

    def request_save(self, state: TrainerState, control: TrainerControl) -> None:
        """Save, unless the loss or a weight has diverged."""
        self._check_loss(state)
        if not all(torch.isfinite(parameter).all() for parameter in self.trainer.network.parameters()):
            stop_if_diverged(self.trainer, math.nan)
        super().request_save(state, control)

    def tell_unusual(self, judged: Judged, control: TrainerControl) -> None:
        """Say it, and note it in the record; stop where the batch is not to be skipped, or too many were."""
        if judged.finite:
            why = f"the loss jumped to {judged.loss:.4g}, usually {judged.usual:.4g}"
        else:
            why = f"the first value that is not finite is {self._first_not_finite(judged)}"
        skips = self.trainer.settings.bad_steps == "skip"
        if judged.skipped:
            self.skipped.append(judged.step)
        in_a_row = self.skipped[-MOST_IN_A_ROW:] == list(range(judged.step - MOST_IN_A_ROW + 1, judged.step + 1))
        if not judged.finite and (not skips or in_a_row):
            stop_at_bad_step(self.trainer, judged, why)
        done = "its batch is left out" if judged.skipped else "its batch counts"
        self.progress.say(f"Step {judged.step:,}: {why}; {done}.")
        self.metrics.append("unusual", step=judged.step, loss=judged.loss, why=why, skipped=judged.skipped)

    def _first_not_finite(self, judged: Judged) -> str:
        """Where; the process that has found it speaks for all."""
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.network)
        if self.trainer.is_fsdp_enabled:
            return "not looked for in a sharded model"
        with self.trainer.uncompiled():
            found: list[Any] = [first_not_finite(model, judged.batches, self.trainer.precision)]
        if self.trainer.accelerator.num_processes > 1:
            everywhere: list[Any] = [None] * self.trainer.accelerator.num_processes
            dist.all_gather_object(everywhere, found[0])
            found = [place for place in everywhere if place is not None] or [None]
        return found[0] or "not to be found again on the same batch"

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
                tokens_per_second=round(logs["tokens_per_second"], 1),
            )

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate and save, unless the run was interrupted within the epoch."""
        self.progress.end_epoch()
        if self.saves_later(state):
            control.should_evaluate = True
            self.request_save(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print the scores, at an epoch's end with samples; write the row; save the model if it is the best so far."""
        score = self.trainer.score
        better = all(score.loss < loss_of(row["validation"]) for row in self.metrics.validations)
        epoch = max(math.ceil(state.global_step / self.trainer.steps_per_epoch), 1)
        if self.saves_later(state):
            self._end_epoch(epoch, state)
        else:
            self.progress.say(f"Step {state.global_step:,}: validation loss {score.loss:.4f}")
            self.metrics.append("validation", epoch=epoch, step=state.global_step, validation=score.as_dict())
        if better:
            save_best(self.trainer, epoch, score)
        patience = self.trainer.settings.patience
        if patience and not self.ended_early and self.metrics.since_best() >= patience:
            self.progress.say(f"No lower validation loss in {patience} validations: the run ends here (patience).")
            self.ended_early = control.should_training_stop = True

    def _end_epoch(self, epoch: int, state: TrainerState) -> None:
        """Print the epoch's scores and samples, write its row, and begin new totals."""
        totals, score = self.trainer.running_totals(), self.trainer.score
        steps = state.global_step % self.trainer.steps_per_epoch
        self.progress.say(
            f"\nEpoch {epoch}{f' (first {steps} steps)' if steps else ''}:\n"
            f"  Train: Loss={totals.loss:.4f}, Acc={totals.accuracy:.2%}\n"
            f"  Val: Loss={score.loss:.4f}, Acc={score.accuracy:.2%}, PPL={readable(score.perplexity)}, "
            f"PPL/word={readable(score.word_perplexity)}, bits/byte={score.bits_per_byte:.4f}\n"
            + "".join(f"  ({remark})\n" for remark in score.remarks)
        )
        samples = self._samples(epoch)
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
        if self.trainer.tensorboard is not None:
            text = "\n\n".join(f"**{sample['prompt']}**: {sample['text']}" for sample in samples)
            self.trainer.tensorboard.add_text("samples", text, state.global_step)
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
