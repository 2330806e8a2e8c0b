"""Sizes of the passes: rows, tokens and ids that the model takes, and refused ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planted import VOCABULARY, Attention, RunningMean, TinyLM, results, running_mean
from torch import Tensor, nn

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.checks import check


@settings(max_examples=25)
@given(st.integers(2, 70), st.integers(4, 9), st.integers(2, 60), st.integers(1, 69))
def test_leak_from_one_position_is_found_at_any_size(length: int, rows: int, vocabulary: int, ahead: int) -> None:
    """Every position sees the token `ahead` of it, weakly; there is one to be seen if the text is longer than that."""
    assume(rows != length)
    table = torch.randn(vocabulary, 8, generator=torch.Generator().manual_seed(0))

    def leaky(ids: Tensor) -> Tensor:
        seen = nn.functional.pad(table[ids][:, ahead:], (0, 0, 0, min(ahead, ids.shape[1])))
        return RunningMean()(table[ids]) + 0.05 * seen

    report = check(leaky, vocabulary, length=length, rows=rows)
    assert report.clean == (ahead >= length)


class Lengths(TinyLM):
    """Takes some lengths only."""

    def __init__(self, taken: Callable[[int], bool]) -> None:
        super().__init__(Attention(0))
        self.taken = taken

    def forward(self, ids: Tensor) -> Tensor:
        if not self.taken(ids.shape[1]):
            raise ValueError(f"{ids.shape[1]} tokens are not taken")
        return super().forward(ids)


@pytest.mark.parametrize(
    ("taken", "length"),
    [
        (lambda tokens: tokens % 64 == 0, 64),
        (lambda tokens: tokens == 128, 128),
        (lambda tokens: tokens <= 40, 32),
        (lambda tokens: tokens % 16 == 0, 64),
    ],
)
@pytest.mark.parametrize("vocab_size", [None, VOCABULARY])
def test_another_length_is_tried_if_the_default_is_refused(
    taken: Callable[[int], bool], length: int, vocab_size: int | None
) -> None:
    torch.manual_seed(0)
    report = check(Lengths(taken), vocab_size)
    assert report.clean, report
    assert report.length == length


def test_first_error_is_shown_if_every_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"61 tokens are not taken; neither did it take 64, 128.* give --length"):
        check(Lengths(lambda tokens: tokens == 100))
    assert check(Lengths(lambda tokens: tokens == 100), length=100).clean


def test_refused_prefix_does_not_stop_the_length_check() -> None:
    torch.manual_seed(0)
    found = results(check(Lengths(lambda tokens: tokens > 15)))["length"]
    assert found.verdict == "ok"
    assert "2 tokens are not taken" in found.meaning


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 1}, "length is 1"),
        ({"rows": 3}, "rows is 3"),
        ({"rows": 6, "length": 6}, "rows is 6"),
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"vocab_size": 51}, r"IndexError.*if it has fewer than 61 positions, give --length .* than 51, --vocab-size"),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(running_mean, **arguments)  # type: ignore[arg-type]


def test_a_length_beyond_the_positions_is_refused() -> None:
    model = MuForCausalLM(MuConfig(vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=20))
    with pytest.raises(InputError, match="length is 21, but the model has 20 positions"):
        check(model, length=21)
    assert check(model).length == 20


def test_model_of_one_length_is_checked_at_that_length() -> None:
    class Fixed(TinyLM):
        def forward(self, ids: Tensor) -> Tensor:
            if ids.shape[1] != 20:
                raise ValueError(f"20 tokens, not {ids.shape[1]}")
            return super().forward(ids)

    report = check(Fixed(Attention(0)), VOCABULARY, length=20)
    assert report.clean
    assert "20 tokens, not 19" in results(report)["length"].meaning
    assert not check(Fixed(Attention(1)), VOCABULARY, length=20).clean


def test_special_tokens_are_not_drawn() -> None:
    """A model may take padding, beginning and end for what they are, wherever they stand."""
    drawn: set[int] = set()

    class Watching(MuForCausalLM):
        def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
            drawn.update(input_ids.flatten().tolist())
            return super().forward(input_ids, **inputs)

    check(Watching(MuConfig(vocab_size=12, num_hidden_layers=1, pad_token_id=5, bos_token_id=7, eos_token_id=[8, 9])))
    assert drawn == set(range(12)) - {5, 7, 8, 9}
