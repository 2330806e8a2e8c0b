"""The contenders of a comparison: MU, and for each question baselines of matched size."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from mu_sota.model.configuration import MuConfig
from mu_sota.settings.run import RunSettings

from .baselines import families_beside
from .questions import MATCHINGS, Matched, Question, matchings_of
from .size_matching import Parameters, count_flops, count_parameters, match_size
from .timing import StepTimer

CONTROL_RATE = 0.1
"""The learning rate of the control that must lose, over the one chosen for the contender that it repeats."""


@dataclass(frozen=True)
class Contender:
    """One model of a comparison.

    Attributes:
        name: in file names and records.
        family: mu, gpt2, llama or llama-tables.
        label: for people, without the matching.
        config: of the model; its dropout is set by tuning.
        parameters: counted on the real model.
        flops_per_token: of forward and backward, counted on the real model.
        matched_on: the quantity in which it equals MU; None for MU itself and for controls.
        match_ratio: that quantity over MU's.
        seconds_per_step: of a training step, timed in turn with MU's.
        control_of: name of the contender that this one repeats, with other seeds or another learning rate.
        rate_factor: times the learning rate chosen for that contender.
        new_seeds: True for a control with seeds of its own.
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
        return f"{self.label}, {MATCHINGS[self.matched_on].title}" if self.matched_on else self.label

    def quantity(self, matched: Matched) -> float:
        """Its size in the unit of a matching."""
        return {
            "params": self.parameters.total,
            "trunk": self.parameters.non_embedding,
            "flops": self.flops_per_token,
            "time": self.seconds_per_step,
        }[matched]


def baselines_beside(config: MuConfig, questions: Sequence[Question]) -> dict[str, tuple[str, Matched]]:
    """The baselines that answer questions about a MU, by name: family, and the quantity in which each equals it."""
    return {
        f"{family}-{matched}": (family, matched)
        for family in families_beside(config)
        for question in questions
        for matched in matchings_of(question)
    }


def make_contenders(
    config: MuConfig,
    run: RunSettings,
    questions: Sequence[Question],
    controls: bool,
    timer: StepTimer,
    report: Callable[[Contender], None],
) -> list[Contender]:
    """MU first, then the baselines, all sized and timed; the controls, if asked for, come last.

    Args:
        config: of MU.
        report: called with each contender as soon as it is sized and timed, which takes minutes for large models.

    Raises:
        InputError: no size of a family matches MU.
    """

    def contender(
        name: str, family: str, label: str, config: PreTrainedConfig, seconds: float, matched: Matched | None
    ) -> Contender:
        parameters, flops = count_parameters(config), count_flops(config, run.window)
        return Contender(name, family, label, config, parameters, flops, matched, seconds_per_step=seconds)

    mu = contender("mu", "mu", "MU", config, timer.seconds(config), None)
    report(mu)
    contenders = [mu]
    families = families_beside(config)
    for name, (family, matched) in baselines_beside(config, questions).items():
        sized, slower = match_size(matched, families[family], config, run.window, timer)
        new = contender(name, family, families[family].label, sized, slower * mu.seconds_per_step, matched)
        contenders.append(dataclasses.replace(new, match_ratio=new.quantity(matched) / mu.quantity(matched)))
        report(contenders[-1])
    return contenders + (_controls(contenders[1]) if controls else [])


def _controls(baseline: Contender) -> list[Contender]:
    """A baseline against itself with other seeds, which must tie, and with a bad learning rate, which must lose."""
    repeated = dataclasses.replace(baseline, matched_on=None, match_ratio=None, control_of=baseline.name)
    again = dataclasses.replace(repeated, name="control-again", label=f"{baseline.title}, other seeds", new_seeds=True)
    slow = dataclasses.replace(
        repeated,
        name="control-slow",
        label=f"{baseline.title}, learning rate x {CONTROL_RATE:g}",
        rate_factor=CONTROL_RATE,
    )
    return [again, slow]
