"""Do blocks carry what they are named for? A matrix of 16 blocks by tasks, and one number from it.

An entry is the selectivity of a linear probe (Hewitt and Liang 2019, arXiv:1909.03368, with shuffled labels as the
control): the share of the labels' entropy that it explains on words of other documents, minus the share it explains of
labels in another order. Legibility is the share of the 16 blocks that beat the 15 others at the task they are named
for; a block with several is ranked by their mean. By chance it is 1/16. X, named for nothing, is never among them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mu_sota.model.blocks import BLOCKS, NUM_BLOCKS, join_blocks

from .block_states import WordStates
from .probes import probe, shuffled
from .tasks import Task

MOST_WORDS = 8_000
"""To fit a probe to, and to test it on; of more, evenly spread ones are taken."""

_FEWEST_OF_A_CLASS = 20  # in either part; a rarer class is left out
_DRAWS = 1_000
_NAMES = [block.name for block in BLOCKS]


@dataclass(frozen=True)
class TaskResult:
    """What probes say of one task. Sums are over the test words of each document, so that documents can be drawn anew.

    Attributes:
        task: what was asked.
        classes: that are asked for.
        num_fit, num_test: words.
        words: [documents], test words.
        prior_nll, control_prior_nll: [documents], nats by the frequencies of the classes alone.
        nll, control_nll: [sets, documents], nats of the probes; sets are the 16 blocks, then as many random projections
            of the whole state, as large as a block.
        accuracy: [sets].
        whole_explained, whole_accuracy: of a probe of the whole state.
        majority: accuracy of naming the most frequent class.
    """

    task: Task
    classes: list[str]
    num_fit: int
    num_test: int
    words: np.ndarray
    prior_nll: np.ndarray
    nll: np.ndarray
    control_prior_nll: np.ndarray
    control_nll: np.ndarray
    accuracy: np.ndarray
    whole_explained: float
    whole_accuracy: float
    majority: float

    def selectivity(self, draws: np.ndarray | None = None) -> np.ndarray:
        """[..., sets], with documents weighted by `draws` [..., documents]; once each by default."""
        weights = np.ones(len(self.words)) if draws is None else draws
        explained = 1 - (weights @ self.nll.T) / (weights @ self.prior_nll)[..., None]
        control = 1 - (weights @ self.control_nll.T) / (weights @ self.control_prior_nll)[..., None]
        return np.asarray(explained - control)


@dataclass(frozen=True)
class Legibility:
    """The results of all tasks at one place of a model."""

    place: int
    results: list[TaskResult]

    @cached_property
    def matrix(self) -> np.ndarray:
        """Selectivity, [16 blocks, tasks]."""
        return np.stack([result.selectivity()[:NUM_BLOCKS] for result in self.results], axis=1)

    @cached_property
    def best_blocks(self) -> list[str]:
        """The blocks that are the best at the task they are named for."""
        return [name for name in _NAMES if self._own_rank(name) == 1]

    @property
    def share(self) -> float:
        """Legibility."""
        return len(self.best_blocks) / NUM_BLOCKS

    def _own_rank(self, name: str) -> int | None:
        """Among the 16 blocks, 1 for the best; None if nothing was asked for this block."""
        columns = [number for number, result in enumerate(self.results) if result.task.block == name]
        if not columns:
            return None
        own = self.matrix[:, columns].mean(1)
        return 1 + int((own > own[_NAMES.index(name)]).sum())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Of the share, 95 %: documents drawn anew with replacement (bootstrap, Efron 1979), probes as they are."""
        random = np.random.default_rng(0)
        total = np.zeros((_DRAWS, NUM_BLOCKS, NUM_BLOCKS))  # of the tasks of each name: [draws, name, block]
        asked = np.zeros(NUM_BLOCKS, dtype=bool)
        for result in self.results:
            count = len(result.words)
            draws = random.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
            name = _NAMES.index(result.task.block)
            total[:, name] += result.selectivity(draws)[:, :NUM_BLOCKS]
            asked[name] = True
        best = total.argmax(-1) == np.arange(NUM_BLOCKS)
        low, high = np.quantile((best & asked).mean(-1), [0.025, 0.975])
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        tasks = [
            {
                "name": result.task.name,
                "block": result.task.block,
                "question": result.task.question,
                "limits": result.task.limits,
                "classes": result.classes,
                "fit_words": result.num_fit,
                "test_words": result.num_test,
                "test_documents": len(result.words),
                "selectivity": result.selectivity()[:NUM_BLOCKS].tolist(),
                "accuracy": result.accuracy[:NUM_BLOCKS].tolist(),
                "majority_accuracy": result.majority,
                "random_projections": result.selectivity()[NUM_BLOCKS:].tolist(),
                "whole_state": {"explained": result.whole_explained, "accuracy": result.whole_accuracy},
            }
            for result in self.results
        ]
        ranks = {name: self._own_rank(name) for name in _NAMES}
        low, high = self.interval
        return {
            "place": self.place,
            "legibility": self.share,
            "low": low,
            "high": high,
            "best_blocks": self.best_blocks,
            "rank_at_own_task": ranks,
            "tasks": tasks,
        }


def measure_legibility(
    states: WordStates,
    fitted: np.ndarray,
    tasks: Sequence[Task],
    place: int,
    progress: Callable[[Sequence[Task]], Iterable[Task]] = iter,
) -> Legibility:
    """Ask every block every task. A task that the texts have no labels for is left out.

    Args:
        states: of documents to fit probes to and of documents to test them on.
        fitted: [documents], true for those to fit to.
        place: an entry of `states.places`.
        progress: wraps the tasks, as `tqdm` does.
    """
    values = states.states[list(states.places).index(place)]
    asked = (_ask(states, values, fitted, task) for task in progress(tasks))
    return Legibility(place, [result for result in asked if result is not None])


def _ask(states: WordStates, values: Tensor, fitted: np.ndarray, task: Task) -> TaskResult | None:
    labels = task.label(states)
    if task.parted == "files":
        to_fit = fitted[states.numbers]
    else:  # the sentences of a document in turn: three to fit to, two to test on
        to_fit = np.array([word.sentence % 5 < 3 for word in states.words])
    parts = list(zip(labels, to_fit, strict=True))
    counts = [Counter(label for label, fit in parts if label and fit == part) for part in (True, False)]
    classes = sorted(label for label in counts[0] if min(count[label] for count in counts) >= _FEWEST_OF_A_CLASS)
    if len(classes) < 2:
        return None
    number = {label: index for index, label in enumerate(classes)}
    coded = np.array([-1 if label is None else number.get(label, -1) for label in labels])
    fit, test = (_spread(np.flatnonzero((coded >= 0) & (to_fit == part))) for part in (True, False))
    size = values.shape[-1]
    whole = join_blocks(values)
    turned = torch.randn(NUM_BLOCKS, whole.shape[-1], size, generator=torch.Generator().manual_seed(0))

    def sets(words: np.ndarray) -> Tensor:
        return torch.cat([values[words].transpose(0, 1), whole[words] @ turned])  # [2 N, W, S]

    fit_labels, test_labels = torch.from_numpy(coded[fit]), torch.from_numpy(coded[test])
    found = probe(sets(fit), fit_labels, sets(test), test_labels)
    control = probe(sets(fit), shuffled(fit_labels, 0), sets(test), shuffled(test_labels, 1))
    of_whole = probe(whole[fit][None], fit_labels, whole[test][None], test_labels)
    documents, place = np.unique(states.numbers[test], return_inverse=True)

    def by_document(nll: Tensor) -> np.ndarray:
        """[..., W] to sums [..., documents]."""
        return np.stack(
            [np.bincount(place, row, len(documents)) for row in nll.double().reshape(-1, len(test)).numpy()]
        )

    return TaskResult(
        task,
        classes,
        len(fit),
        len(test),
        np.bincount(place, minlength=len(documents)),
        by_document(found.prior_nll)[0],
        by_document(found.nll),
        by_document(control.prior_nll)[0],
        by_document(control.nll),
        found.correct.double().mean(-1).numpy(),
        float(of_whole.explained[0]),
        float(of_whole.correct.double().mean()),
        float((test_labels == fit_labels.mode().values).double().mean()),
    )


def _spread(words: np.ndarray) -> np.ndarray:
    """At most `MOST_WORDS` of them."""
    return words[:: -(-len(words) // MOST_WORDS)] if len(words) else words
