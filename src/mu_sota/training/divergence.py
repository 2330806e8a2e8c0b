"""A run that diverged stops, with advice, and keeps its last good checkpoint."""

import math
from typing import NoReturn

from mu_sota.model.errors import InputError

from .checkpoint import find_checkpoints
from .step_watch import Judged
from .trainer import MuTrainer

_EXPLODED = 1.5  # times the loss of the first logged steps
_HIGH_RATE = 0.01  # higher learning rates than this are never advised


class DivergedError(InputError):
    """The loss became infinite, not a number, or far larger than at the start."""


def stop_if_diverged(trainer: MuTrainer, loss: float) -> None:
    """Compare a training loss with the one at the start of the run, which the trainer remembers.

    Raises:
        DivergedError: the loss is not finite, or 1.5 times that of the start.
    """
    first = trainer.first_loss
    if math.isfinite(loss) and (first is None or loss <= _EXPLODED * first):
        return
    began = f" (at first it was {first:.4g})" if first is not None and math.isfinite(first) else ""
    raise DivergedError(
        f"the loss became {loss:.4g} at step {trainer.state.global_step}{began}, so the run stopped; "
        f"{_advice(trainer)}; {_last_good(trainer)}"
    )


def stop_at_bad_step(trainer: MuTrainer, judged: Judged, why: str) -> NoReturn:
    """Stop at a loss or gradient that is not finite.

    Args:
        trainer: of the run.
        judged: the step.
        why: where it arose.

    Raises:
        DivergedError: always.
    """
    what = "gradient" if math.isfinite(judged.loss) else "loss"
    value = judged.grad_norm if math.isfinite(judged.loss) else judged.loss
    skipped = ""
    if trainer.settings.bad_steps == "stop":
        skipped = ", or go on with --resume --set bad_steps=skip, which leaves out such a batch"
    raise DivergedError(
        f"the {what} became {value:.4g} at step {judged.step} ({why}), so the run stopped; "
        f"{_advice(trainer)}{skipped}; {_last_good(trainer)}"
    )


def _advice(trainer: MuTrainer) -> str:
    settings = trainer.settings
    lower = f"--set learning_rate={min(settings.learning_rate / 2, _HIGH_RATE):g}"
    clip = f"--set max_grad_norm={settings.max_grad_norm / 2:g}"
    return f"start again in another --out with a lower learning rate ({lower}) or harder clipping ({clip})"


def _last_good(trainer: MuTrainer) -> str:
    checkpoints = find_checkpoints(trainer.out)
    return f"the last good checkpoint is kept in {checkpoints[-1]}" if checkpoints else "no checkpoint yet"
