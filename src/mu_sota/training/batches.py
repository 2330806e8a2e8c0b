"""The windows of a training step: their order, the same however many processes divide it, and their dataset."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mu_sota.data.windows import TrainWindows
from mu_sota.model.loss import IGNORE_INDEX

PADDING_SAMPLE = -1
"""Number of the sample that counts for nothing: it fills the share of a process that has one window less."""


class WindowOrder(Sampler[list[int]]):
    """Micro-batches of window numbers for one process.

    An epoch is a permutation drawn from seed and epoch, cut into global batches; the last may be smaller. Each process
    takes every `world`-th window of a global batch, in micro-batches. So the global batches are the same, in the same
    order, however they are divided.

    Attributes:
        epoch: which epoch `__iter__` gives, counted from 0; set before each.
    """

    def __init__(self, windows: int, batch_size: int, micro_batch_size: int, seed: int, rank: int, world: int) -> None:
        self.windows, self.batch_size, self.micro_batch_size = windows, batch_size, micro_batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0

    @property
    def accumulation(self) -> int:
        """Micro-batches of a full global batch."""
        return self._micro_batches(self.batch_size)

    @property
    def steps(self) -> int:
        """Global batches, and so optimizer steps, of an epoch."""
        return math.ceil(self.windows / self.batch_size)

    def _micro_batches(self, windows: int) -> int:
        return math.ceil(math.ceil(windows / self.world) / self.micro_batch_size)

    def __len__(self) -> int:
        full, rest = divmod(self.windows, self.batch_size)
        return full * self.accumulation + self._micro_batches(rest)

    def __iter__(self) -> Iterator[list[int]]:
        # Not seed + epoch: the second epoch of seed 0 must not be the first of seed 1.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.windows, generator=generator).tolist()
        for start in range(0, self.windows, self.batch_size):
            batch = order[start : start + self.batch_size]
            batch += [PADDING_SAMPLE] * (-len(batch) % self.world)
            share = batch[self.rank :: self.world]
            for first in range(0, len(share), self.micro_batch_size):
                yield share[first : first + self.micro_batch_size]


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Training windows as `Trainer` takes them, in micro-batches; a padding sample is a window without labels."""

    def __init__(self, windows: TrainWindows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A micro-batch [B, T], gathered at once: for a GPU, window by window takes a noticeable share of a step."""
        numbers = torch.tensor(indices)
        tokens = self.windows.gather(numbers.clamp(min=0))
        labels = tokens[:, 1:].masked_fill((numbers == PADDING_SAMPLE)[:, None], IGNORE_INDEX)
        return {"input_ids": tokens[:, :-1].contiguous(), "labels": labels}
