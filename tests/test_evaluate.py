"""Scores: against full logits and hand-written formulas, every token exactly once."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.data import Split
from mu_sota.evaluate import Score, evaluate

VOCABULARY = 40


def _split(tokens: int, seed: int = 0) -> Split:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, tokens).astype(np.uint16)
    return Split(tokens=ids, n_words=tokens // 2, n_bytes=5 * tokens, n_documents=1)


@pytest.fixture(scope="module")
def model() -> MuForCausalLM:
    torch.manual_seed(0)
    model = MuForCausalLM(MuConfig(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=32))
    torch.nn.init.normal_(model.lm_head.weight)  # predictions far from uniform
    return model.eval()


@pytest.mark.parametrize("tokens", [2, 31, 33, 34, 100])
@pytest.mark.parametrize("stride", [16, 5])
def test_evaluate_equals_one_prediction_at_a_time(model: MuForCausalLM, tokens: int, stride: int) -> None:
    """The reference predicts each token alone, from exactly the context its window should give it."""
    window, split = 16, _split(tokens)
    nll, correct = 0.0, 0
    for target in range(1, tokens):
        # Windows move on by `stride`; the last is moved back to end with the split.
        moved = max(math.ceil((target - window) / stride), 0) * stride
        start = 0 if target <= window else min(moved, tokens - 1 - window)
        ids = torch.from_numpy(split.tokens[start:target].astype(np.int64))[None]
        logits = model(ids).logits[0, -1]
        nll += F.cross_entropy(logits[None], torch.tensor([int(split.tokens[target])])).item()
        correct += int(logits.argmax()) == split.tokens[target]
    score = evaluate(model, split, window=window, stride=stride, batch_size=3)
    assert score.nll == pytest.approx(nll, rel=1e-5)
    assert (score.num_correct, score.num_tokens) == (correct, tokens - 1)


def test_the_figures_are_the_published_formulas() -> None:
    score = Score(nll=200.0, num_correct=25, num_tokens=100, num_words=40, num_bytes=250)
    assert score.loss == 2.0
    assert score.accuracy == 0.25
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.word_perplexity == pytest.approx(math.exp(200 / 40))
    assert score.bits_per_byte == pytest.approx(200 / math.log(2) / 250)
    assert Score(1e6, 0, 1, 1, 1).perplexity == math.inf  # said, not raised


def test_evaluation_leaves_training_mode_and_random_state_as_they_were(model: MuForCausalLM) -> None:
    model.train()
    before = torch.random.get_rng_state()
    first = evaluate(model, _split(50), window=16, stride=16, batch_size=2)
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())
    model.eval()
    assert first == evaluate(model, _split(50), window=16, stride=16, batch_size=2)
