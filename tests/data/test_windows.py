"""Every token but the first is scored once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mu_sota.data.windows import EvalWindows, TrainWindows
from mu_sota.model.errors import InputError


@given(n=st.integers(2, 80), window=st.integers(1, 40), stride=st.integers(1, 50))
def test_train_windows_are_the_slices_they_promise(n: int, window: int, stride: int) -> None:
    tokens = np.arange(n, dtype=np.uint16)
    if n < window + 1:
        with pytest.raises(InputError, match=f"{n} tokens, a window of {window} needs {window + 1}"):
            TrainWindows(tokens, window, stride)
        return
    windows = TrainWindows(tokens, window, stride)
    starts = [start for start in range(0, n, stride) if start + window + 1 <= n]
    assert [item["input_ids"].tolist() for item in (windows[i] for i in range(len(windows)))] == [
        list(range(start, start + window)) for start in starts
    ]
    for i in range(len(windows)):
        assert torch.equal(windows[i]["shift_labels"], windows[i]["input_ids"] + 1)


@given(window=st.integers(1, 20), stride=st.integers(1, 30), data=st.data())
def test_windows_gathered_at_once_are_those_one_by_one(window: int, stride: int, data: st.DataObject) -> None:
    windows = TrainWindows(np.arange(100, dtype=np.uint16), window, stride)
    indices = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=5))
    for row, index in zip(windows.gather(torch.tensor(indices)), indices, strict=True):
        assert torch.equal(row[:-1], windows[index]["input_ids"])
        assert torch.equal(row[1:], windows[index]["shift_labels"])


@given(n=st.integers(2, 120), window=st.integers(1, 40), data=st.data())
def test_eval_windows_score_every_target_once_with_its_context(n: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    tokens = np.arange(n, dtype=np.uint32)
    windows = EvalWindows(tokens, window, stride)
    scored = []
    for i in range(len(windows)):
        inputs, labels = windows[i]["input_ids"].tolist(), windows[i]["shift_labels"].tolist()
        assert len(inputs) == len(labels) == min(window, n - 1)
        for t, label in enumerate(labels):
            if label != -100:
                assert label == inputs[t] + 1
                context = inputs[: t + 1]
                assert context == list(range(label - len(context), label))
                assert len(context) >= min(label, window - stride)
                scored.append(label)
    assert sorted(scored) == list(range(1, n))


def test_windows_go_through_a_loader() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    batch = next(iter(DataLoader(TrainWindows(tokens, 32, 16), batch_size=4)))
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (4, 32)
    assert batch["input_ids"].dtype == batch["shift_labels"].dtype == torch.int64
    loaded = list(DataLoader(EvalWindows(tokens, 32, 16), batch_size=1000))
    assert sum(int((batch["shift_labels"] != -100).sum()) for batch in loaded) == len(tokens) - 1


def test_index_past_the_last_window_is_an_index_error() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    for windows in (TrainWindows(tokens, 10, 5), EvalWindows(tokens, 10, 5)):
        assert torch.equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])
        with pytest.raises(IndexError):
            windows[len(windows)]


@pytest.mark.parametrize("kind", [TrainWindows, EvalWindows])
@pytest.mark.parametrize(("window", "stride", "message"), [(0, 1, "window is 0"), (4, 0, "stride is 0")])
def test_window_sizes_are_positive(kind: type, window: int, stride: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(np.arange(9), window, stride)


def test_eval_windows_refuse_gaps_and_nothing_to_score() -> None:
    with pytest.raises(InputError, match="stride 5 is longer than the window 4"):
        EvalWindows(np.arange(9), 4, 5)
    with pytest.raises(InputError, match="has 1 tokens, and at least 2"):
        EvalWindows(np.arange(1))


def test_windows_of_wikitext2_are_as_many_as_the_arithmetic_says() -> None:
    train = np.empty(2_088_628 + 1, np.uint16)
    assert len(TrainWindows(train, 512, 256)) == (2_088_629 - 513) // 256 + 1 == 8157
    assert len(EvalWindows(train, 512, 512)) == -(-2_088_628 // 512) == 4080
