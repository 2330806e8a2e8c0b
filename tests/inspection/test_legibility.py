"""Legibility of planted structure: blocks that hold a label are found out, and others are not credited."""

from functools import cache

import numpy as np
import pytest
import torch

from mu_sota.inspection.block_states import WordStates
from mu_sota.inspection.labelled_text import Document, Word
from mu_sota.inspection.legibility import Legibility, measure_legibility
from mu_sota.inspection.tasks import Task
from mu_sota.model.blocks import BLOCKS

NAMES = [block.name for block in BLOCKS]
DOCUMENTS, SENTENCES, WORDS = 40, 10, 8


def made_up(*, holder: int | None, seed: int = 0) -> WordStates:
    """Random words with one of four labels; the values of block `holder` say which, those of all others are noise."""
    random = np.random.default_rng(seed)
    documents, codes = [], []
    for number in range(DOCUMENTS):
        picks = random.integers(4, size=SENTENCES * WORDS)
        words = [Word(str(pick), 0, 0, at // WORDS, at % WORDS) for at, pick in enumerate(picks)]
        documents.append(Document(str(number), None, "", words))
        codes.append(picks)
    label = np.concatenate(codes)
    states = torch.from_numpy(random.normal(size=(1, len(label), 16, 4))).float()
    if holder is not None:
        states[0, :, holder] += 3 * torch.eye(4)[label]
    numbers = np.repeat(np.arange(DOCUMENTS), SENTENCES * WORDS)
    return WordStates(documents, [w for d in documents for w in d.words], numbers, numbers, 8, [2], states)


def task(block: str, name: str = "code", **changes: str) -> Task:
    return Task(name, block, "", "", lambda states: [word.text for word in states.words], **changes)  # type: ignore[arg-type]


@cache
def measured(holder: int | None, *blocks: str) -> Legibility:
    fitted = np.arange(DOCUMENTS) < DOCUMENTS // 2
    return measure_legibility(
        made_up(holder=holder), fitted, [task(block, f"code {block}") for block in blocks], place=2
    )


def test_the_block_that_holds_a_label_is_found() -> None:
    found = measured(12, "P", "E")
    column = found.matrix[:, 0]
    assert column.argmax() == 12
    assert column[12] > 0.8
    assert np.abs(np.delete(column, 12)).max() < 0.05
    assert found.best_blocks == ["P"], "E is asked the same, and does not hold it"
    assert found.share == 1 / 16
    assert found.interval == (1 / 16, 1 / 16)
    record = found.as_dict()
    assert record["rank_at_own_task"]["P"] == 1
    assert record["rank_at_own_task"]["E"] > 1
    assert record["rank_at_own_task"]["X"] is None, "nothing was asked for it"


def test_what_no_block_holds_has_no_selectivity_and_an_interval_that_says_so() -> None:
    found = measured(None, "I", "S", "C1")
    assert np.abs(found.matrix).max() < 0.05
    low, high = found.interval
    assert low == 0
    assert high <= 3 / 16


def test_beside_the_blocks_stand_the_whole_state_and_random_projections_of_it() -> None:
    entry = measured(12, "P", "E").as_dict()["tasks"][0]
    assert entry["whole_state"]["explained"] > 0.8
    assert 0 < max(entry["random_projections"]) < 0.5, "a projection has a little of every block"
    assert entry["majority_accuracy"] == pytest.approx(0.25, abs=0.05)
    assert entry["accuracy"][12] > 0.9
    assert entry["fit_words"] == entry["test_words"] == DOCUMENTS * SENTENCES * WORDS / 2


def test_selectivity_is_weighted_by_documents() -> None:
    result = measured(12, "P", "E").results[0]
    count = len(result.words)
    once, again = result.selectivity(), result.selectivity(np.stack([np.ones(count), np.eye(count)[0]]))
    np.testing.assert_allclose(again[0], once)
    alone = 1 - result.nll[12, 0] / result.prior_nll[0]
    control = 1 - result.control_nll[12, 0] / result.control_prior_nll[0]
    assert again[1, 12] == pytest.approx(alone - control)


def test_a_document_is_asked_for_in_other_sentences_of_it() -> None:
    """Words to fit to and words to test on are parted within each document, and never share a sentence."""
    states = made_up(holder=None)
    states.states[0, :, 3] += 4 * torch.randn(DOCUMENTS, 4)[states.numbers]
    whose = Task("document", "C2", "", "", lambda s: [str(n) for n in s.numbers], parted="documents")
    found = measure_legibility(states, np.ones(DOCUMENTS, dtype=bool), [whose], place=2)
    assert found.best_blocks == ["C2"]
    assert found.matrix[3, 0] > 0.3
    assert found.results[0].num_fit == DOCUMENTS * WORDS * 6


def test_a_block_with_several_tasks_is_ranked_by_their_mean() -> None:
    states = made_up(holder=12)
    noise = Task("noise", "P", "", "", lambda s: [str(hash((n, 7)) % 3) for n in range(len(s.words))])
    fitted = np.arange(DOCUMENTS) < DOCUMENTS // 2
    found = measure_legibility(states, fitted, [task("P"), noise], place=2)
    assert found.best_blocks == ["P"]


def test_rare_classes_and_tasks_without_labels_are_left_out() -> None:
    states = made_up(holder=12)
    rare = Task("rare", "S", "", "", lambda s: ["a" if n % 100 else "b" for n in range(len(s.words))])
    none = Task("none", "R1", "", "", lambda s: [word.relation for word in s.words])
    some = Task("some", "P", "", "", lambda s: [w.text if n % 50 else "rare" for n, w in enumerate(s.words)])
    fitted = np.arange(DOCUMENTS) < DOCUMENTS // 2
    found = measure_legibility(states, fitted, [rare, none, some], place=2)
    assert [result.task.name for result in found.results] == ["some"]
    assert found.results[0].classes == ["0", "1", "2", "3", "rare"]
