"""Windows of token ids, to train and to evaluate on."""

import numpy as np
import torch
from torch.utils.data import Dataset

from mu_sota.model.errors import InputError
from mu_sota.model.loss import IGNORE_INDEX


class TrainWindows(Dataset[dict[str, torch.Tensor]]):
    """Overlapping training windows; item i covers tokens[i * stride : i * stride + window + 1].

    An item has `input_ids` and `shift_labels`, int64 of shape (window,); shift_labels[t] is the token that follows
    input_ids[t].

    Raises:
        InputError: `window` or `stride` is below 1, or there are fewer than window + 1 tokens.
    """

    def __init__(self, tokens: np.ndarray, window: int = 512, stride: int = 256) -> None:
        _require_positive(window=window, stride=stride)
        if len(tokens) < window + 1:
            raise InputError(
                f"The training split has {len(tokens)} tokens, a window of {window} needs {window + 1}: shorten it "
                "with --set window=..., or give more text."
            )
        self.tokens, self.window, self.stride = tokens, window, stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.window - 1) // self.stride + 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = range(0, len(self) * self.stride, self.stride)[index]
        return _item(self.tokens, start, self.window)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """The tokens of several items, int64 of shape (items, window + 1)."""
        places = indices.numpy()[:, None] * self.stride + np.arange(self.window + 1)
        return torch.from_numpy(self.tokens[places].astype(np.int64))


class EvalWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows that score every token but the first exactly once.

    With `stride` < `window` each window begins with tokens that the one before has scored: context, labelled -100. So
    every scored token but those of the first window has at least window - stride tokens of context beside the one it
    follows. All items have the length min(window, tokens - 1): the last window starts early enough to be full.

    Items are as in `TrainWindows`.

    Raises:
        InputError: there are fewer than 2 tokens, or not 1 <= stride <= window.
    """

    def __init__(self, tokens: np.ndarray, window: int = 512, stride: int = 512) -> None:
        _require_positive(window=window, stride=stride)
        if stride > window:
            raise InputError(
                f"The stride {stride} is longer than the window {window} and would skip tokens: give at most {window}."
            )
        if len(tokens) < 2:
            raise InputError(
                f"The evaluation split has {len(tokens)} tokens, and at least 2 are needed to predict one: give more "
                "text."
            )
        self.tokens, self.stride = tokens, stride
        self.length = min(window, len(tokens) - 1)

    def __len__(self) -> int:
        beyond_first = len(self.tokens) - 1 - self.length
        return 1 + -(-beyond_first // self.stride)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]
        start = min(index * self.stride, len(self.tokens) - 1 - self.length)
        item = _item(self.tokens, start, self.length)
        if index > 0:
            scored_up_to = (index - 1) * self.stride + self.length
            item["shift_labels"][: scored_up_to - start] = IGNORE_INDEX
        return item


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"The {name} is {size}: give at least 1.")


def _item(tokens: np.ndarray, start: int, length: int) -> dict[str, torch.Tensor]:
    piece = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
    return {"input_ids": piece[:-1], "shift_labels": piece[1:].clone()}
