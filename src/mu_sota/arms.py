"""The models of a comparison: MU, and for each question standard Transformers of the size that makes it fair."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedConfig, set_seed

from .baselines import FAMILIES, Family, Parameters, build, count_flops, count_parameters, fit
from .config import MuConfig
from .errors import InputError
from .settings import RunSettings

Question = Literal["params", "flops", "time"]
QUESTIONS: tuple[Question, ...] = ("params", "flops", "time")

Matched = Literal["params", "trunk", "flops", "time"]
MATCHINGS: dict[Question, tuple[Matched, ...]] = {"params": ("params", "trunk"), "flops": ("flops",), "time": ("time",)}
"""What is made equal to answer a question. The tokens, their order and the batches are equal in all."""

SAID: dict[Matched, str] = {
    "params": "same total parameters",
    "trunk": "same parameters outside embeddings and tables",
    "flops": "same FLOPs",
    "time": "same time",
}

CONTROL_RATE = 0.1
"""The learning rate of the control that must lose, in parts of what was chosen for the model it is a control of."""

TIME_TOLERANCE = 0.03
"""Relative difference in time at which the search for a size ends; no machine repeats its timings much better."""

_SEARCHES = 6
_PROBE_SECONDS = 10.0  # of timing, for one candidate
_CALIBRATION_SECONDS = 30.0


@dataclass(frozen=True)
class Arm:
    """One model of a comparison.

    Attributes:
        name: in file names and records.
        family: mu, gpt2 or llama.
        label: for people, without the matching.
        config: of the model; its dropout is set by tuning.
        parameters: counted on the real model.
        flops_per_token: of forward and backward, counted on the real model.
        matched_on: in what it equals MU; None for MU itself and for controls.
        match_ratio: that quantity over MU's.
        seconds_per_step: of a training step, timed in turn with all others; NaN before.
        control_of: name of the arm that this one repeats, with other seeds or another learning rate.
        rate_factor: times the learning rate chosen for that arm.
        new_seeds: its seeds are others than everyone's.
    """

    name: str
    family: str
    label: str
    config: PreTrainedConfig
    parameters: Parameters
    flops_per_token: int
    matched_on: Matched | None = None
    match_ratio: float | None = None
    seconds_per_step: float = float("nan")
    control_of: str | None = None
    rate_factor: float = 1.0
    new_seeds: bool = False

    @property
    def title(self) -> str:
        """For people, with the matching."""
        return f"{self.label}, {SAID[self.matched_on]}" if self.matched_on else self.label


def make_arms(
    config: MuConfig, run: RunSettings, questions: Sequence[Question], controls: bool, stepper: "Stepper"
) -> list[Arm]:
    """MU and its opponents, all sized and timed; the controls, if asked for, come last.

    Raises:
        InputError: no standard Transformer of the family can be matched.
    """
    mu = Arm("mu", "mu", "MU", config, count_parameters(config), count_flops(config, run.window))
    arms = [mu]
    for name, family in FAMILIES.items():
        for matched in (matched for question in questions for matched in MATCHINGS[question]):
            theirs = _sized(family, mu, matched, run.window, stepper)
            arms.append(
                Arm(
                    f"{name}-{matched}",
                    name,
                    family.label,
                    theirs,
                    count_parameters(theirs),
                    count_flops(theirs, run.window),
                    matched,
                )
            )
    timed = stepper.seconds([arm.config for arm in arms], _CALIBRATION_SECONDS)
    arms = [dataclasses.replace(arm, seconds_per_step=seconds) for arm, seconds in zip(arms, timed, strict=True)]
    mu = arms[0]
    arms = [mu, *(dataclasses.replace(arm, match_ratio=_ratio(arm, mu)) for arm in arms[1:])]
    if controls:
        again, slow = "other seeds", f"learning rate x {CONTROL_RATE:g}"
        repeated = dataclasses.replace(arms[1], matched_on=None, match_ratio=None, control_of=arms[1].name)
        label = arms[1].title
        arms += [
            dataclasses.replace(repeated, name="control-again", label=f"{label}, {again}", new_seeds=True),
            dataclasses.replace(repeated, name="control-slow", label=f"{label}, {slow}", rate_factor=CONTROL_RATE),
        ]
    return arms


def _sized(family: Family, mu: Arm, matched: Matched, window: int, stepper: "Stepper") -> PreTrainedConfig:
    like = mu.config
    assert isinstance(like, MuConfig)

    def outside(config: PreTrainedConfig) -> int:
        return count_parameters(config).outside

    if matched == "params":
        return fit(family, like, lambda config: count_parameters(config).total, mu.parameters.total)
    if matched == "trunk":
        return fit(family, like, outside, mu.parameters.outside)
    if matched == "flops":
        return fit(family, like, lambda config: count_flops(config, window), mu.flops_per_token)

    # Time is no exact count: sizes are tried, nearer and nearer, along the family's usual shapes.
    target = mu.parameters.outside
    best: tuple[float, PreTrainedConfig] = (float("inf"), like)
    for _ in range(_SEARCHES):
        config = fit(family, like, outside, target)
        ours, theirs = stepper.seconds([like, config], _PROBE_SECONDS)
        ratio = theirs / ours
        best = min(best, (abs(ratio - 1), config), key=lambda found: found[0])
        if best[0] <= TIME_TOLERANCE:
            break
        target = max(round(target / ratio), 1)
    return best[1]


def _ratio(arm: Arm, mu: Arm) -> float:
    pairs = {
        "params": (arm.parameters.total, mu.parameters.total),
        "trunk": (arm.parameters.outside, mu.parameters.outside),
        "flops": (arm.flops_per_token, mu.flops_per_token),
        "time": (arm.seconds_per_step, mu.seconds_per_step),
    }
    theirs, ours = pairs[arm.matched_on or "params"]
    return theirs / ours


class Stepper:
    """Times training steps of several models in turn, so that other work on the machine meets all alike.

    Args:
        run: settings of the run; a step is forward, backward, clipping and AdamW on one batch.
        micro_batch_size: sequences at once.
        precision: fp32, bf16 or fp16.
        device: where.
    """

    def __init__(self, run: RunSettings, micro_batch_size: int, precision: str, device: torch.device) -> None:
        self.run, self.micro_batch_size, self.precision, self.device = run, micro_batch_size, precision, device

    def seconds(self, configs: Sequence[PreTrainedConfig], budget: float) -> list[float]:
        """Seconds of a step of each model: the median of the first, times the median ratio to it of each other.

        About `budget` seconds are spent, but at least 3 steps on each.

        Raises:
            InputError: a single sequence at once is still too much for the memory.
        """
        while True:
            try:
                steps = [self._step(config) for config in configs]
                taken: list[list[float]] = [[] for _ in steps]
                first = sum(step() for step in steps)  # untimed: caches and allocators warm up
                for _ in range(min(max(round(budget / first), 3), 30)):
                    for times, step in zip(taken, steps, strict=True):
                        times.append(step())
                unit = statistics.median(taken[0])
                return [
                    unit * statistics.median(mine / other for mine, other in zip(times, taken[0], strict=True))
                    for times in taken
                ]
            except (RuntimeError, MemoryError) as error:
                if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                    raise
                if self.micro_batch_size == 1:
                    raise InputError(
                        "out of memory with a single sequence at once: lower window, num_hidden_layers or matrix_size "
                        "with --set"
                    ) from error
                self.micro_batch_size //= 2
                gc.collect()

    def _step(self, config: PreTrainedConfig) -> Callable[[], float]:
        set_seed(0)
        model: Any = build(config, 0.1)
        model.to(self.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(config.vocab_size, (self.micro_batch_size, self.run.window), device=self.device)
        parts = -(-self.run.batch_size // self.micro_batch_size)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        autocast = torch.autocast(self.device.type, half) if half else nullcontext()

        def step() -> float:
            start = time.perf_counter()
            for _ in range(parts):
                with autocast:
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
