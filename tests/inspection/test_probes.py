"""Linear probes, held against the same regression as a general optimizer fits it."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from mu_sota.inspection.probes import probe, shuffled


def planted(words: int, seed: int = 0, strength: float = 4.0) -> tuple[Tensor, Tensor]:
    """Values of three sets, [3, words, 4], and labels of three classes: the first set holds them, the second half of
    the time, the third never."""
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=words)
    values = random.normal(size=(3, words, 4))
    told = strength * np.eye(4)[labels]
    values[0] += told
    values[1] += told * (random.random(words) < 0.5)[:, None]
    return torch.tensor(values, dtype=torch.float32), torch.tensor(labels)


def test_what_a_set_holds_is_found_and_no_more() -> None:
    fit, fit_labels = planted(2000)
    test, test_labels = planted(1000, seed=1)
    found = probe(fit, fit_labels, test, test_labels)
    told, half, nothing = found.explained.tolist()
    assert told > 0.9
    assert 0.2 < half < 0.7
    assert abs(nothing) < 0.02
    assert found.correct[0].float().mean() > 0.95
    assert found.prior_nll.mean() == pytest.approx(np.log(3), abs=0.01)


def test_shuffled_labels_cannot_be_read_off() -> None:
    fit, fit_labels = planted(2000)
    test, test_labels = planted(1000, seed=1)
    control = probe(fit, shuffled(fit_labels, 0), test, shuffled(test_labels, 1))
    assert control.explained.abs().max() < 0.02
    assert sorted(shuffled(fit_labels, 0).tolist()) == sorted(fit_labels.tolist())


def test_it_is_the_regression_that_a_general_optimizer_fits() -> None:
    fit, fit_labels = planted(300, strength=1.5)
    test, test_labels = planted(200, seed=1, strength=1.5)
    found = probe(fit, fit_labels, test, test_labels)
    for number in range(len(fit)):
        mean, std = fit[number].mean(0), fit[number].std(0)
        values, others = ((part[number] - mean).div(std).double().numpy() for part in (fit, test))

        def nll(packed: Any, values: Any, labels: Tensor) -> Any:
            weight, bias = packed[:12].reshape(4, 3), packed[12:]
            logits = values @ weight + bias
            logits -= np.log(np.exp(logits).sum(1, keepdims=True))
            return -logits[np.arange(len(labels)), labels.numpy()]

        def loss(packed: Any, values: Any = values) -> float:
            return float(nll(packed, values, fit_labels).mean() + 1e-3 * (packed[:12] ** 2).sum())

        best = minimize(loss, np.zeros(15), method="BFGS")
        expected = nll(best.x, others, test_labels)
        assert found.nll[number].mean() == pytest.approx(expected.mean(), abs=2e-3)


def test_constant_values_tell_nothing() -> None:
    _, labels = planted(500)
    values = torch.full((1, 500, 4), 3.0)
    assert probe(values, labels, values, labels).explained.item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("labels", [[], [0, 0, 0]])
def test_one_class_is_no_question(labels: list[int]) -> None:
    coded = torch.tensor(labels, dtype=torch.long)
    values = torch.zeros(1, len(labels), 4)
    with pytest.raises(ValueError, match="two classes"):
        probe(values, coded, values, coded)
