"""A run that diverged stops, with advice, and keeps its last good checkpoint."""

import math

from mu_sota.model.errors import InputError

from .checkpoint import find_checkpoints
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
    first, settings = trainer.first_loss, trainer.settings
    if math.isfinite(loss) and (first is None or loss <= _EXPLODED * first):
        return
    began = f" (at first it was {first:.4g})" if first is not None and math.isfinite(first) else ""
    lower = f"--set learning_rate={min(settings.learning_rate / 2, _HIGH_RATE):g}"
    clip = f"--set max_grad_norm={settings.max_grad_norm / 2:g}"
    checkpoints = find_checkpoints(trainer.out)
    where = f"the last good checkpoint is kept in {checkpoints[-1]}" if checkpoints else "no checkpoint yet"
    raise DivergedError(
        f"the loss became {loss:.4g} at step {trainer.state.global_step}{began}, so the run stopped; "
        f"start again in another --out with a lower learning rate ({lower}) or harder clipping ({clip}); {where}"
    )
