"""Timing of training steps, on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, set_seed

from mu_sota.common.environment import autocast
from mu_sota.common.memory import halve_until_it_fits
from mu_sota.settings.run import RunSettings

from .baselines import build

_PROBE_SECONDS = 6.0  # of timing a model beside MU
_ROUND = 3  # steps of one model before it is the other's turn: training meets its own weights in the caches


class StepTimer:
    """Times training steps, those of two models in turn, so that other work on the machine meets both alike.

    Args:
        run: settings of the run; a step is forward, backward, clipping and AdamW on one batch.
        micro_batch_size: sequences at once; halved when they do not fit the memory.
        precision: fp32, bf16 or fp16.
        device: to train on.

    Attributes:
        micro_batch_size: the one that the memory has held.
    """

    def __init__(self, run: RunSettings, micro_batch_size: int, precision: str, device: torch.device) -> None:
        self.run, self.micro_batch_size, self.precision, self.device = run, micro_batch_size, precision, device

    def seconds(self, config: PreTrainedConfig) -> float:
        """Median seconds of a step."""
        return statistics.median(self._rounds([config])[0])

    def ratio(self, config: PreTrainedConfig, other: PreTrainedConfig) -> float:
        """Time of a step of the first model over that of the second: the median over rounds."""
        first, second = self._rounds([config, other])
        return statistics.median(one / other for one, other in zip(first, second, strict=True))

    def _rounds(self, configs: Sequence[PreTrainedConfig]) -> list[list[float]]:
        """Seconds of a step of each model in each of at least 3 rounds.

        Raises:
            InputError: the memory does not hold a single sequence.
        """

        def attempt(micro_batch_size: int) -> list[list[float]]:
            self.micro_batch_size = micro_batch_size
            return self._time([self._step(config) for config in configs])

        return halve_until_it_fits(attempt, self.micro_batch_size, tell=lambda _: None)

    def _time(self, steps: Sequence[Callable[[], float]]) -> list[list[float]]:
        first = sum(step() for step in steps)  # untimed: caches and allocators warm up
        taken: list[list[float]] = [[] for _ in steps]
        for _ in range(min(max(round(_PROBE_SECONDS / (_ROUND * first)), 3), 30)):
            for times, step in zip(taken, steps, strict=True):
                step()
                times.append(statistics.mean(step() for _ in range(_ROUND - 1)))
        return taken

    def _step(self, config: PreTrainedConfig) -> Callable[[], float]:
        set_seed(0)
        model: Any = build(config, 0.0)  # as most are trained that read a text once or twice
        model.to(self.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(config.vocab_size, (self.micro_batch_size, self.run.window), device=self.device)
        parts = -(-self.run.batch_size // self.micro_batch_size)

        def step() -> float:
            start = time.perf_counter()
            for _ in range(parts):
                with autocast(self.device, self.precision):
                    loss = model(input_ids=ids, shift_labels=ids, skip_logits=True).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.run.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        return step
