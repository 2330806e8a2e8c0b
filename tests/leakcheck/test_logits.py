"""The logits among the outputs of a model."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from planted import VOCABULARY, WIDTH, planted, running_mean
from torch import Tensor, nn

from mu_sota import InputError
from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.logits import change, logits_in, named_tensors, spread

LOGITS = torch.zeros(2, 3, 4)


class Output:
    logits = LOGITS


@pytest.mark.parametrize(
    "output",
    [LOGITS, Output(), {"loss": None, "logits": LOGITS}, (LOGITS, None), (None, LOGITS), [torch.tensor(1.0), LOGITS]],
)
def test_logits_are_found(output: Any) -> None:
    assert [id(found) for found in logits_in(output)] == [id(LOGITS)]


@pytest.mark.parametrize("output", [None, (), {}, "text", torch.zeros(2, 3), torch.zeros(2, 3, 4).long(), {"loss": 1}])
def test_other_outputs_are_not_taken_for_logits(output: Any) -> None:
    assert logits_in(output) == []


def test_output_tensors_are_named_by_key_attribute_or_index() -> None:
    class Pair(NamedTuple):
        hidden: Tensor
        scores: Tensor

    class Attributes:
        def __init__(self) -> None:
            self.scores, self.loss = LOGITS, 1.0

    assert list(named_tensors({"scores": LOGITS, "loss": None})) == ["scores"]
    assert list(named_tensors((None, LOGITS))) == ["1"]
    assert list(named_tensors(Pair(LOGITS, LOGITS))) == ["0", "1", "hidden", "scores"]
    assert list(named_tensors(Attributes())) == ["scores"]
    assert list(named_tensors(LOGITS)) == [""]
    assert list(named_tensors(Output())) == ["logits"]


def test_change_counts_equal_infinities_as_equal() -> None:
    ours = torch.tensor([1.0, -math.inf, math.inf])
    assert change(ours, ours.clone()) == 0
    assert change(ours, torch.tensor([1.5, -math.inf, math.inf])) == 0.5
    assert change(ours, torch.tensor([1.0, 0.0, math.inf])) == math.inf
    assert change(ours[:0], ours[:0]) == 0
    assert change(ours, torch.tensor([math.nan, -math.inf, math.inf])) == math.inf
    assert change(ours * math.nan, ours * math.nan) == 0


@pytest.mark.parametrize("fill", [0.0, 5.0, -1e4, -1e9, -math.inf, torch.finfo(torch.float32).min])
def test_entries_that_are_masked_everywhere_do_not_set_the_scale(fill: float) -> None:
    logits = 3 * torch.randn(5, 61, 20, generator=torch.Generator().manual_seed(0)) + 100 * torch.arange(20)
    assert spread(logits) == pytest.approx(3, rel=0.05)
    assert spread(nn.functional.pad(logits, (0, 14), value=fill)) == pytest.approx(spread(logits))
    assert spread(torch.ones(2, 3, 4)) == 0


@pytest.mark.parametrize(
    "wrap",
    [lambda logits: logits, lambda logits: (logits, None), lambda logits: {"logits": logits, "loss": None}],
)
def test_logits_are_found_in_a_tensor_tuple_or_dictionary(wrap: Callable[[Tensor], Any]) -> None:
    report = check(lambda ids: wrap(running_mean(ids)))
    assert report.clean
    assert report.vocab_size == VOCABULARY


def test_vocab_size_tells_logits_from_hidden_states() -> None:
    model = planted("no mask")
    state = torch.randn(VOCABULARY, WIDTH)

    def both(ids: Tensor) -> tuple[Tensor, Tensor]:
        return state[ids], model(ids)

    assert not check(both, VOCABULARY).clean
    said = (
        r"several tensors that could be logits \(0: \[1, 61, 24\], 1: .*; give vocab_size, or name .*--output NAME or"
    )
    with pytest.raises(InputError, match=said):
        check(both)


def test_ambiguous_logits_must_be_named() -> None:
    """The first is causal, the second is not: what is checked depends on the choice."""
    leaky = planted("no mask")

    def tuples(ids: Tensor) -> Any:
        return running_mean(ids), leaky(ids)

    def named(ids: Tensor) -> Any:
        return {"draft": running_mean(ids), "final": leaky(ids)}

    for vocab_size in (None, VOCABULARY):
        with pytest.raises(InputError, match=r"--output NAME or INDEX \(output=\)"):
            check(tuples, vocab_size)
    with pytest.raises(InputError, match=r"did not return logits.* --output \(output=\): draft: .*, final: "):
        check(named)
    for model, first, second in ((tuples, 0, 1), (tuples, "0", "1"), (named, "draft", "final")):
        assert check(model, output=first).clean
        assert not check(model, output=second).clean
    with pytest.raises(InputError, match=r"returned nothing \[B, T, V\] that is called 'third'.* draft: .*, final: "):
        check(named, output="third")


def test_tensor_of_another_length_is_not_taken_for_logits() -> None:
    def with_summary(ids: Tensor) -> tuple[Tensor, Tensor]:
        return running_mean(ids)[:, :7], running_mean(ids)

    report = check(with_summary)
    assert report.clean
    assert report.vocab_size == VOCABULARY
