"""The models of a comparison: MU, and for each question standard Transformers of the size that makes it fair."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from mu_sota.model.configuration import MuConfig
from mu_sota.settings.run import RunSettings

from .baselines import FAMILIES, Family
from .size_matching import Parameters, count_flops, count_parameters, fit
from .timing import Stepper

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
"""Relative difference in time that is none to the search for a size; no machine repeats its timings much better."""

_SEARCHES = 8


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
        seconds_per_step: of a training step, timed in turn with MU's; NaN before.
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
    config: MuConfig,
    run: RunSettings,
    questions: Sequence[Question],
    controls: bool,
    stepper: Stepper,
    tell: Callable[[Arm], None],
) -> list[Arm]:
    """MU and its opponents, all sized and timed; the controls, if asked for, come last.

    `tell` is told of each when its size and time are known, since for large models that takes minutes.

    Raises:
        InputError: no standard Transformer of the family can be matched.
    """
    mu = Arm("mu", "mu", "MU", config, count_parameters(config), count_flops(config, run.window))
    mu = dataclasses.replace(mu, seconds_per_step=stepper.seconds(config))
    tell(mu)
    arms = [mu]
    for name, family in FAMILIES.items():
        for matched in (matched for question in questions for matched in MATCHINGS[question]):
            if matched == "time":
                theirs, slower = _as_fast_as(mu, family, stepper)
            else:
                theirs = _of_size(mu, family, matched, run.window)
                slower = stepper.ratio(theirs, config)
            arm = Arm(
                f"{name}-{matched}",
                name,
                family.label,
                theirs,
                count_parameters(theirs),
                count_flops(theirs, run.window),
                matched,
                seconds_per_step=slower * mu.seconds_per_step,
            )
            arms.append(dataclasses.replace(arm, match_ratio=_ratio(arm, mu)))
            tell(arms[-1])
    if controls:
        again, slow = "other seeds", f"learning rate x {CONTROL_RATE:g}"
        repeated = dataclasses.replace(arms[1], matched_on=None, match_ratio=None, control_of=arms[1].name)
        label = arms[1].title
        arms += [
            dataclasses.replace(repeated, name="control-again", label=f"{label}, {again}", new_seeds=True),
            dataclasses.replace(repeated, name="control-slow", label=f"{label}, {slow}", rate_factor=CONTROL_RATE),
        ]
    return arms


def _of_size(mu: Arm, family: Family, matched: Matched, window: int) -> PreTrainedConfig:
    like = mu.config
    assert isinstance(like, MuConfig)
    if matched == "params":
        return fit(family, like, lambda config: count_parameters(config).total, mu.parameters.total)
    if matched == "trunk":
        return fit(family, like, lambda config: count_parameters(config).outside, mu.parameters.outside)
    return fit(family, like, lambda config: count_flops(config, window), mu.flops_per_token)


def _as_fast_as(mu: Arm, family: Family, stepper: Stepper) -> tuple[PreTrainedConfig, float]:
    """The configuration whose step takes as long as MU's, and its time in parts of MU's.

    Time is no exact count: sizes are tried along the family's usual shapes, each where a power law through the last two
    says, until one is as fast twice in a row. Failing that, the one that seemed nearest is timed again, since the best
    of several noisy timings flatters itself.
    """
    like = mu.config
    assert isinstance(like, MuConfig)
    tried: list[tuple[float, float, PreTrainedConfig]] = []  # log of size and of time over MU's
    size = math.log(mu.parameters.outside)
    for _ in range(_SEARCHES):
        config = fit(family, like, lambda config: count_parameters(config).outside, round(math.exp(size)))
        slower = stepper.ratio(config, like)
        if _is_same(slower) and _is_same(slower := stepper.ratio(config, like)):
            return config, slower
        tried.append((size, math.log(slower), config))
        growth = 0.7  # of time with size, in logarithms, before two points tell
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            growth = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0])
        # Noise can make the two points say anything; time grows with size, and hardly faster.
        size -= tried[-1][1] / min(max(growth, 0.3), 1.2)
    nearest = min(tried, key=lambda one: abs(one[1]))[2]
    return nearest, stepper.ratio(nearest, like)


def _is_same(slower: float) -> bool:
    return abs(math.log(slower)) <= TIME_TOLERANCE


def _ratio(arm: Arm, mu: Arm) -> float:
    pairs = {
        "params": (arm.parameters.total, mu.parameters.total),
        "trunk": (arm.parameters.outside, mu.parameters.outside),
        "flops": (arm.flops_per_token, mu.flops_per_token),
        "time": (arm.seconds_per_step, mu.seconds_per_step),
    }
    theirs, ours = pairs[arm.matched_on or "params"]
    return theirs / ours
