"""The learning rate of every step."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimizer: Optimizer, peak: float, steps: int, warmup_steps: int) -> OneCycleLR:
    """From peak / 25 along half a cosine up to the peak, then along another half down to peak / 250,000.

    The peak comes after `warmup_steps`; in a run of no more steps than that, after 30 % of them. Smith and Topin 2017,
    "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", arXiv:1708.07120, with the
    cosines of PyTorch in place of straight lines, and a constant momentum.

    Args:
        optimizer: whose rate is set; the schedule's `step()` follows each of its steps.
        peak: highest learning rate.
        steps: of the whole run.
        warmup_steps: of them, those up to the peak.
    """
    steps = max(steps, 4)  # the least that has both phases
    warmup = warmup_steps if warmup_steps < steps else round(0.3 * steps)
    return OneCycleLR(optimizer, max_lr=peak, total_steps=steps, pct_start=max(warmup, 2) / steps, cycle_momentum=False)
