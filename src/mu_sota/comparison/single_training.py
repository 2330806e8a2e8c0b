"""One training of a comparison: the same trainer for every model, a learning curve, the best weights, exact resume."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedConfig,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from mu_sota.common.files import replacing, write_json
from mu_sota.data.corpus import Corpus, Split
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import evaluate
from mu_sota.saved.load_save import save_trained
from mu_sota.saved.run_record import BEST_FOLDER
from mu_sota.settings.run import RunSettings
from mu_sota.training.interrupt import Interrupt, Interrupted
from mu_sota.training.running_totals import RunningTotals
from mu_sota.training.trainer import MuTrainer

from .baselines import build
from .hyperparameter_search import Trial

_COURSE_FILE = "course-{}.json"  # of a step, beside its checkpoint

CURVE_POINTS = 10
WARMUP_SHARE = 0.1


def beginning(split: Split, num_tokens: int) -> Split:
    """The first tokens of a split, `num_tokens` of them predicted; words and bytes are those of its share."""
    share = min(num_tokens / split.n_predicted, 1.0)
    tokens: np.ndarray = split.tokens[: num_tokens + 1]
    return Split(tokens, round(split.n_words * share), round(split.n_bytes * share), split.n_documents)


@dataclass(frozen=True)
class TrainingSetup:
    """What all trainings of a comparison share.

    Attributes:
        corpus: its validation split is the part that curves and tuning look at.
        windows: of the training split.
        run: settings; learning rate, weight decay, seed and steps are replaced by those of a training.
        micro_batch_size, precision: as in `MuTrainer`.
        interrupt: Ctrl-C.
        tick: told after every step its number, and the last validation loss or NaN.
    """

    corpus: Corpus
    windows: TrainWindows
    run: RunSettings
    micro_batch_size: int
    precision: str
    interrupt: Interrupt
    tick: Callable[[int, float], None]


def train_once(
    setup: TrainingSetup, config: PreTrainedConfig, trial: Trial, seed: int, steps: int, points: int, place: Path
) -> dict[str, Any]:
    """Train a new model, or go on with what an interrupted call left in `place`.

    The weights with the least validation loss among `points` evaluations stay in `place`/best; with a single one there
    is nothing to choose, and none are kept. What a training needs to go on stays there too, until `finish`.

    Returns:
        `seconds` of training alone, the `curve`, `best_step` and its `loss`, and the step at which it `diverged` or
        None. Of a training that diverged before its first evaluation, the first weights are the best.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.
    """
    place.mkdir(parents=True, exist_ok=True)
    run = setup.run.model_copy(
        update={
            "learning_rate": trial.learning_rate,
            "weight_decay": trial.weight_decay,
            "warmup_steps": round(WARMUP_SHARE * steps),
            "seed": seed,
            "max_steps": steps,
            "trackers": [],
        }
    )
    set_seed(seed)
    model: Any = build(config, trial.dropout)
    trainer = MuTrainer(
        model,
        setup.corpus.tokenizer,
        setup.corpus,
        setup.windows,
        run,
        place,
        setup.micro_batch_size,
        setup.precision,
    )
    trainer.remove_callback(PrinterCallback)
    course = CurveCallback(trainer, setup, points)
    trainer.add_callback(course)
    trainer.continue_from_last_checkpoint()
    if course.stopped:
        raise Interrupted(f"the training in {place} is saved at step {trainer.state.global_step:,} of {steps:,}")
    best = min(course.curve, key=lambda row: row["validation_loss"], default=None)
    if best is None:
        set_seed(seed)
        trainer.network.load_state_dict(build(config, trial.dropout).state_dict())
        best = {"step": 0, "validation_loss": course.validation_loss()}
        course.keep()
    return {
        "seconds": round(course.seconds, 2),
        "best_step": best["step"],
        "loss": best["validation_loss"],
        "diverged": course.diverged,
        "curve": course.curve,
    }


def finish(place: Path) -> None:
    """Remove what only an unfinished training needs; its record has been written."""
    for left in place.iterdir():
        if left.name.startswith(("checkpoint-", "course-", ".")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


class CurveCallback(TrainerCallback):
    """When a training evaluates, saves and stops, and its clock, which stands still while it evaluates or saves."""

    def __init__(self, trainer: MuTrainer, setup: TrainingSetup, points: int) -> None:
        self.trainer, self.setup, self.points = trainer, setup, points
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.stopped = False
        self.diverged: int | None = None
        self.checked = RunningTotals()
        self.since = self.saved = time.monotonic()

    def _pause(self) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds += time.monotonic() - self.since
        self.since = math.nan

    def _go_on(self) -> None:
        self.since = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take curve and clock from where the checkpoint stands."""
        if state.global_step:
            course = json.loads(self._file(state.global_step).read_text(encoding="utf-8"))
            self.curve, self.seconds, self.checked = (
                course["curve"],
                course["seconds"],
                RunningTotals(*course["checked"]),
            )
        self.saved = time.monotonic()
        self._go_on()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The step counter alone says where a training stands."""
        self.trainer.order.epoch = state.global_step // self.trainer.steps_per_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate at every point, look for Ctrl-C."""
        step = state.global_step
        self.setup.tick(step, self.curve[-1]["validation_loss"] if self.curve else math.nan)
        if self._is_point(step, state.max_steps):
            self._pause()
            self._add_point(state, control)
            self._go_on()
        self.stopped = self.setup.interrupt.received and step < state.max_steps
        if self.stopped:
            control.should_training_stop = True
        due = time.monotonic() - self.saved > 60 * self.trainer.settings.checkpoint_minutes
        if self.stopped or (due and step < state.max_steps):
            self._pause()
            content = {"curve": self.curve, "seconds": self.seconds, "checked": self.checked}
            write_json(self._file(step), content)  # before the checkpoint, which is nothing without it
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The checkpoint is there; the one before is gone, and so can be what stood beside it."""
        for file in self.trainer.out.glob(_COURSE_FILE.format("*")):
            if file != self._file(state.global_step):
                file.unlink()
        self.saved = time.monotonic()
        self._go_on()

    def _file(self, step: int) -> Path:
        return self.trainer.out / _COURSE_FILE.format(step)

    def _is_point(self, step: int, steps: int) -> bool:
        return step * self.points // steps > (step - 1) * self.points // steps

    def _add_point(self, state: TrainerState, control: TrainerControl) -> None:
        loss = self.validation_loss()
        if not math.isfinite(loss):
            self.diverged = state.global_step
            control.should_training_stop = True
            return
        totals = self.trainer.running_totals()
        if all(loss < row["validation_loss"] for row in self.curve):
            self.keep()
        self.curve.append(
            {
                "step": state.global_step,
                "seconds": round(self.seconds, 2),
                "train_loss": totals.since(self.checked).loss,
                "validation_loss": loss,
            }
        )
        self.checked = totals

    def validation_loss(self) -> float:
        """Of the weights as they are, in nats a token."""
        run = self.trainer.settings
        score = evaluate(
            self.trainer.network,
            self.setup.corpus.validation,
            window=run.window,
            stride=run.eval_stride or run.window,
            batch_size=self.setup.micro_batch_size,
        )
        return score.loss

    def keep(self) -> None:
        """Save the weights as the best so far."""
        if self.points == 1:
            return
        with replacing(self.trainer.out / BEST_FOLDER) as temporary:
            model = self.trainer.accelerator.unwrap_model(self.trainer.network)
            save_trained(model, self.trainer.tokenizer, self.trainer.settings, temporary)
