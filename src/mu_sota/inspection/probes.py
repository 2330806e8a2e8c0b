"""Linear probes: how much of a label can be read off a few values, by a linear map and nothing else.

Legend: B sets of values, each with a probe of its own; W words, S values, C classes.

A probe is multinomial logistic regression (Alain and Bengio 2016, "Understanding intermediate layers using linear
classifier probes", arXiv:1610.01644). What it finds is measured in nats on words that it was not fitted to: the share
of the labels' entropy that it explains, which is their usable information (Xu et al. 2020, arXiv:2002.10689) relative
to its maximum. Unlike accuracy, it does not stay the same where one class has nearly all of the words.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RIDGE = 1e-3  # per word, on standardised values: a probe of few words does not run away
_STEPS = 100


@dataclass(frozen=True)
class Probed:
    """What probes say about test words.

    Attributes:
        nll: [B, W], nats a word.
        correct: [B, W], true where the likeliest class is the word's.
        prior_nll: [W], nats of the classes' frequencies among the words fitted to.
    """

    nll: Tensor
    correct: Tensor
    prior_nll: Tensor

    @property
    def explained(self) -> Tensor:
        """[B], the share of the labels' entropy that a probe explains: from 0 to 1, and below 0 where it misleads."""
        return 1 - self.nll.mean(-1) / self.prior_nll.mean()


def probe(fit: Tensor, fit_labels: Tensor, test: Tensor, test_labels: Tensor) -> Probed:
    """Fit a probe to each of B sets of values, all at once, and try it on other words.

    Args:
        fit, test: values, [B, W, S] each with its own number of words.
        fit_labels, test_labels: [W] int64, classes counted from 0; every class of the test words occurs among those
            fitted to.

    Raises:
        ValueError: there are no words to fit to or to test on, or fewer than two classes.
    """
    classes = int(fit_labels.max()) + 1 if len(fit_labels) else 0
    if not len(test_labels) or classes < 2:
        raise ValueError(f"a probe needs words to fit to and to test on, and two classes; it has {classes}")
    mean, std = fit.mean(1, keepdim=True), fit.std(1, keepdim=True)
    fit, test = ((values - mean) / std.clamp(min=1e-6) for values in (fit, test))
    frequencies = torch.bincount(fit_labels, minlength=classes).float() / len(fit_labels)
    prior = frequencies.log()
    weight = torch.zeros(len(fit), fit.shape[-1], classes, requires_grad=True)
    bias = prior.expand(len(fit), 1, classes).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def nll(values: Tensor, labels: Tensor) -> Tensor:
        logits = torch.baddbmm(bias, values, weight)  # [B, W, C]
        return F.cross_entropy(logits.transpose(1, 2), labels.expand(len(values), -1), reduction="none")

    def loss() -> Tensor:
        optimizer.zero_grad()
        # The sum over sets, which share nothing but the steps of the optimizer.
        total = nll(fit, fit_labels).mean(-1).sum() + _RIDGE * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        correct = torch.baddbmm(bias, test, weight).argmax(-1) == test_labels
        return Probed(nll(test, test_labels), correct, -prior[test_labels])


def shuffled(labels: Tensor, seed: int) -> Tensor:
    """The labels in another order: the control, of which nothing can be read off."""
    return labels[torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))]
