"""One training run of a comparison: the same trainer for every model, a learning curve, best weights, exact resume."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, TrainerControl, TrainerState, TrainingArguments, set_seed

from mu_sota.common.files import replacing
from mu_sota.data.corpus import Corpus, Split
from mu_sota.data.windows import TrainWindows
from mu_sota.saved.load_save import save_trained
from mu_sota.saved.run_record import BEST_FOLDER
from mu_sota.settings.run import RunSettings
from mu_sota.training.callbacks import CheckpointCallback
from mu_sota.training.checkpoint import MANIFEST_FILE, find_checkpoints
from mu_sota.training.interrupt import Interrupt, Interrupted
from mu_sota.training.running_totals import RunningTotals
from mu_sota.training.step_watch import Judged
from mu_sota.training.trainer import MuTrainer

from .baselines import build
from .hyperparameter_search import Trial

CURVE_POINTS = 10
TENSORBOARD_FOLDER = "tensorboard"
"""In the folder of a comparison: the curves as they grow, for those who watch."""

WARMUP_SHARE = 0.1


def beginning(split: Split, num_tokens: int) -> Split:
    """The first tokens of a split, `num_tokens` of them predicted; words and bytes are in proportion."""
    share = min(num_tokens / split.n_predicted, 1.0)
    tokens: np.ndarray = split.tokens[: num_tokens + 1]
    return Split(tokens, round(split.n_words * share), round(split.n_bytes * share), split.n_documents)


@dataclass(frozen=True)
class TrainingSetup:
    """What all training runs of a comparison share.

    Attributes:
        corpus: its validation split is the part that learning curves and tuning are computed on.
        windows: of the training split.
        run: settings; each training run has its own learning rate, weight decay, seed and steps in place of these.
        micro_batch_size, precision: as in `MuTrainer`.
        interrupt: Ctrl-C.
        tick: called after every step with its number and the last validation loss, or NaN before the first.
    """

    corpus: Corpus
    windows: TrainWindows
    run: RunSettings
    micro_batch_size: int
    precision: str
    interrupt: Interrupt
    tick: Callable[[int, float], None]


def train_once(
    setup: TrainingSetup, config: PreTrainedConfig, trial: Trial, seed: int, steps: int, points: int, folder: Path
) -> dict[str, Any]:
    """Train a new model, or go on with the training run that an interrupted call left in `folder`.

    Of `points` evaluations, the weights with the least validation loss are saved in `folder`/best; of a single one,
    none are. Checkpoints are in `folder` too, until `finish`.

    Returns:
        `seconds` of training alone, the `curve`, `best_step` and its `loss`, and the step at which the run `diverged`
        or None. Of a run that diverged before its first evaluation, the initial weights are the best.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for begun in find_checkpoints(folder):
        if not (begun / MANIFEST_FILE).exists():  # of an older version, which kept the curve elsewhere
            tqdm.write(f"{begun} is of an older version: this training begins again.")
            finish(folder)
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
    model = _initial_model(config, trial, seed)
    trainer = MuTrainer(model, setup.corpus, setup.windows, run, folder, setup.micro_batch_size, setup.precision)
    curve = CurveCallback(trainer, setup, points)
    trainer.add_callback(curve)
    trainer.train_from_last_checkpoint(steps)
    if curve.diverged is None and trainer.state.global_step < steps:
        raise Interrupted(f"the training in {folder} is saved at step {trainer.state.global_step:,} of {steps:,}")
    best = min(curve.rows, key=lambda row: row["validation_loss"], default=None)
    if best is None:
        trainer.network.load_state_dict(_initial_model(config, trial, seed).state_dict())
        best = {"step": 0, "validation_loss": trainer.validate().loss}
        curve.save_best()
    return {
        "seconds": round(curve.seconds, 2),
        "best_step": best["step"],
        "loss": best["validation_loss"],
        "diverged": curve.diverged,
        "curve": curve.rows,
    }


def _initial_model(config: PreTrainedConfig, trial: Trial, seed: int) -> Any:
    set_seed(seed)
    return build(config, trial.dropout)


def finish(folder: Path) -> None:
    """Remove what only an unfinished training run needs, once its record is written."""
    for left in folder.iterdir():
        if left.name.startswith(("checkpoint-", "course-", ".")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


class CurveCallback(CheckpointCallback):
    """The learning curve of a training run, and its clock, which stops while the run evaluates or saves.

    Args:
        trainer: of the run.
        setup: of all runs.
        points: evaluations, at equal distances, the last after the last step.

    Attributes:
        rows: of the curve, one a point: step, seconds, train_loss since the point before, validation_loss.
        seconds: of training until the clock was last stopped.
        diverged: the step at which training or validation loss or the gradient was not finite, or None.
    """

    def __init__(self, trainer: MuTrainer, setup: TrainingSetup, points: int) -> None:
        super().__init__(trainer, setup.interrupt)
        self.tick, self.points = setup.tick, points
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.diverged: int | None = None
        self.board: Any = None
        if "tensorboard" in setup.run.trackers:
            from torch.utils.tensorboard import SummaryWriter

            comparison, contender, run = trainer.out.parents[2], trainer.out.parent.name, trainer.out.name
            self.board = SummaryWriter(str(comparison / TENSORBOARD_FOLDER / contender / run))
        trainer.more_progress = self._progress

    def _progress(self) -> dict[str, Any]:
        """The curve and the clock, which a checkpoint keeps."""
        return {"curve": self.rows, "seconds": self.seconds, "covered": self.covered}

    def _stop_clock(self) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds += time.monotonic() - self.started_at

    def _start_clock(self) -> None:
        self.started_at = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue the curve and the clock of the checkpoint."""
        if saved := self.trainer.progress:
            self.rows, self.seconds, self.covered = saved["curve"], saved["seconds"], RunningTotals(*saved["covered"])
        super().on_train_begin(args, state, control)
        self._start_clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate where the curve has a point."""
        step = state.global_step
        self.tick(step, self.rows[-1]["validation_loss"] if self.rows else math.nan)
        if step * self.points // state.max_steps > (step - 1) * self.points // state.max_steps:
            self._stop_clock()
            self._add_point(state, control)
            self._start_clock()
        super().on_step_end(args, state, control)

    def request_save(self, state: TrainerState, control: TrainerControl) -> None:
        """Save, with the clock stopped."""
        self._stop_clock()
        super().request_save(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on with the clock."""
        super().on_save(args, state, control)
        self._start_clock()

    def tell_unusual(self, judged: Judged, control: TrainerControl) -> None:
        """A loss or gradient that is not finite ends the training: it has diverged."""
        if not judged.finite:
            self.diverged = judged.step
            control.should_training_stop = True

    def _add_point(self, state: TrainerState, control: TrainerControl) -> None:
        loss = self.trainer.validate().loss
        if not math.isfinite(loss):
            self.diverged = state.global_step
            control.should_training_stop = True
            return
        if all(loss < row["validation_loss"] for row in self.rows):
            self.save_best()
        row = {
            "step": state.global_step,
            "seconds": round(self.seconds, 2),
            "train_loss": self.new_totals().loss,
            "validation_loss": loss,
        }
        self.rows.append(row)
        if self.board is not None:
            for name in ("train_loss", "validation_loss"):
                self.board.add_scalar(name, row[name], state.global_step)
            self.board.flush()

    def save_best(self) -> None:
        """Save the weights as the best so far, where there is more than one point to choose from."""
        if self.points == 1:
            return
        with replacing(self.trainer.out / BEST_FOLDER) as temporary:
            model: Any = self.trainer.accelerator.unwrap_model(self.trainer.network)
            save_trained(model, self.trainer.corpus.tokenizer, self.trainer.settings, temporary)
