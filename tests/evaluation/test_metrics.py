"""Scores: against full logits and hand-written formulas, every token exactly once."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.common.files import as_json
from mu_sota.common.text import readable
from mu_sota.data.corpus import Split
from mu_sota.evaluation.metrics import Score, evaluate
from mu_sota.saved.run_record import loss_of

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


# --- Figures that no number can hold ---------------------------------------------------------------------------------


def strict(text: str) -> object:
    """JSON as its standard has it."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_usual_figures_have_no_remark() -> None:
    score = Score(nll=200.0, num_correct=25, num_tokens=100, num_words=40, num_bytes=250)
    assert score.remarks == []
    assert "remarks" not in score.as_dict()
    assert score.as_dict()["word_perplexity"] == score.word_perplexity


@pytest.mark.parametrize(
    ("score", "missing", "said"),
    [
        (Score(5000.0, 0, 900, 1, 4000), {"word_perplexity"}, "perplexity per word has no figure: exp of 5,000 nats"),
        (Score(9000.0, 0, 9, 9, 50), {"perplexity", "word_perplexity"}, "perplexity has no figure: exp of 1,000 nats"),
        (
            Score(math.inf, 0, 9, 9, 50),
            {"nll", "loss", "perplexity", "word_perplexity", "bits_per_byte"},
            "the loss is not finite",
        ),
        (
            Score(math.nan, 0, 9, 9, 50),
            {"nll", "loss", "perplexity", "word_perplexity", "bits_per_byte"},
            "the loss is not finite",
        ),
    ],
)
def test_a_figure_that_is_not_finite_is_null_and_a_remark_says_why(score: Score, missing: set[str], said: str) -> None:
    found = strict(as_json(score.as_dict()))
    assert isinstance(found, dict)
    assert {name for name, value in found.items() if value is None} == missing
    assert said in found["remarks"][0]


def test_long_words_give_a_remark() -> None:
    """As in a text without spaces, where perplexity per word can be a number and still says nothing."""
    score = Score(nll=300.0, num_correct=0, num_tokens=100, num_words=5, num_bytes=450)
    assert math.isfinite(score.word_perplexity)
    (said,) = score.remarks
    assert "have 90 bytes here on average" in said
    assert "bits per byte" in said


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    losses = [loss_of(Score(nll, 0, 10, 10, 50).as_dict()) for nll in (math.nan, 30.0, math.inf)]
    assert min(losses) == 3.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5920.9912, "5,920.99"),
        (17_686_387_659.2763, "1.77e10"),
        (999_999.4, "999,999.40"),
        (0.0, "0.00"),
        (None, "beyond all numbers"),
        (math.inf, "beyond all numbers"),
    ],
)
def test_large_figures_can_be_read(value: float | None, expected: str) -> None:
    assert readable(value) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    )
)
def test_every_record_is_json(value: object) -> None:
    strict(as_json(value))
    assert as_json({"a": [math.nan, 1.5, {"b": (math.inf,)}]}) == '{"a": [null, 1.5, {"b": [null]}]}'
