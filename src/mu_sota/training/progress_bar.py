"""What a run shows while it trains: a bar an epoch, its speed, the time to go, and lines that do not break the bar."""

import math
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerState

from mu_sota.common import environment
from mu_sota.common.bars import seconds_between_drawings
from mu_sota.common.text import duration

from .trainer import MuTrainer

_ESTIMATE_AFTER = 5  # steps; the first ones include warm-up of caches and allocators


class ProgressBar:
    """The bar of the current epoch, in the main process; the others only know the speed."""

    def __init__(self, trainer: MuTrainer) -> None:
        self.shown, self.say = trainer.is_world_process_zero(), trainer.say
        self.steps_per_epoch = trainer.steps_per_epoch
        self.tokens_per_step = trainer.settings.batch_size * trainer.settings.window
        self.bar: tqdm[Any] | None = None

    def start(self, state: TrainerState) -> None:
        """Start the clock."""
        self.started, self.started_at_step = time.monotonic(), state.global_step
        if state.global_step:
            self.say(f"Going on after step {state.global_step:,} of {state.max_steps:,}.\n")

    def start_epoch(self, state: TrainerState) -> None:
        """Show a bar for what is left of the epoch, or of the run if that ends before."""
        epoch, done = divmod(state.global_step, self.steps_per_epoch)
        self.bar = tqdm(
            desc=f"Epoch {epoch + 1}/{math.ceil(state.max_steps / self.steps_per_epoch)} [Train]",
            total=min(self.steps_per_epoch, state.max_steps - state.global_step + done),
            initial=done,
            disable=not self.shown,
            mininterval=seconds_between_drawings(),
            dynamic_ncols=True,
        )

    def step(self, state: TrainerState) -> None:
        """A step is done; after the first few, say how long the run will take."""
        if self.bar:
            self.bar.update()
        if state.global_step - self.started_at_step == _ESTIMATE_AFTER:
            self.say(
                f"Estimate: {self._time_left(state)} to go for {state.max_steps - state.global_step:,} of "
                f"{state.max_steps:,} steps at {self._seconds_per_step(state):.2f} s a step, and the time for "
                f"validation"
            )

    def show_loss(self, state: TrainerState, loss: float) -> None:
        """Show a training loss behind the bar, with speed, peak memory and the time left."""
        if self.bar:
            self.bar.set_postfix_str(
                f"loss {loss:.3f}, {self.tokens_per_second(state):,.0f} tok/s, "
                f"{environment.peak_memory() / 2**30:.1f} GiB, all done in {self._time_left(state)}",
                refresh=False,
            )

    def end_epoch(self) -> None:
        """Leave the bar as it is."""
        if self.bar:
            self.bar.close()
            self.bar = None

    def tokens_per_second(self, state: TrainerState) -> float:
        """Since this start of the run, validation and samples included."""
        return self.tokens_per_step / self._seconds_per_step(state)

    def _seconds_per_step(self, state: TrainerState) -> float:
        return (time.monotonic() - self.started) / (state.global_step - self.started_at_step)

    def _time_left(self, state: TrainerState) -> str:
        return duration(self._seconds_per_step(state) * (state.max_steps - state.global_step))
