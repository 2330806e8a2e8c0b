"""The progress bar of a comparison."""

import math
from typing import Any

from tqdm.auto import tqdm

from mu_sota.common.bars import seconds_between_drawings


class ProgressBar:
    """Progress over all training runs in seconds as planned, so that the remaining time is right for slow models too.

    Args:
        seconds: planned for everything.
    """

    def __init__(self, seconds: float) -> None:
        self.total = seconds
        self.bar: tqdm[Any] = tqdm(
            total=self.total,
            bar_format="{percentage:3.0f}% |{bar:20}| {elapsed} so far, {remaining} left: {desc}{postfix}",
            mininterval=seconds_between_drawings(),
            smoothing=0.02,
            dynamic_ncols=True,
        )
        self.per_step, self.steps, self.last = 0.0, 0, 0

    def skip(self, seconds: float) -> None:
        """Count work that an earlier process finished, which takes no time now."""
        done = min(self.bar.n + seconds, self.total)  # sums of parts round
        self.bar.initial += done - self.bar.n
        self.bar.last_print_n += done - self.bar.n  # or tqdm would think it the work of a moment
        self.bar.n = done

    def begin(self, description: str, steps: int, seconds: float) -> None:
        """Begin work of `steps` steps that is planned to take `seconds`."""
        self.bar.set_description_str(description, refresh=False)
        self.bar.set_postfix_str("", refresh=False)
        self.per_step, self.steps, self.last = seconds / steps, steps, 0

    def tick(self, step: int, loss: float) -> None:
        """Count a step; `loss` is the last validation loss, or NaN before the first."""
        if not self.last:  # an interrupted training may go on here
            self.skip((step - 1) * self.per_step)
            self.last = step - 1
        shown_loss = "" if math.isnan(loss) else f", validation loss {loss:.3f}"
        self.bar.set_postfix_str(f"step {step:,} of {self.steps:,}{shown_loss}", refresh=False)
        self._update(step)

    def end(self) -> None:
        """End the work, perhaps before its last step."""
        self._update(self.steps)

    def _update(self, step: int) -> None:
        self.bar.update(min((step - self.last) * self.per_step, self.total - self.bar.n))
        self.last = step

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
