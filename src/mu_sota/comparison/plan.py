"""What a comparison will do, decided before anything is trained: models, steps, trials, seeds, and their time."""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mu_sota.common.text import duration
from mu_sota.data.corpus import Corpus
from mu_sota.model.errors import InputError
from mu_sota.settings.load import Settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings

from .baselines import config_from_dict
from .contenders import QUESTIONS, Arm
from .hyperparameter_search import Rung, rungs, settings_tried
from .single_training import CURVE_POINTS
from .size_matching import Parameters

FORWARD_SHARE = 1 / 3
"""Of the time of a training step, what evaluating as many tokens is taken to need: of forward and backward, the forward
pass is a third of the operations."""

_SMALLEST_CURVE = 16_384  # tokens
_UNITS = {"s": 1, "min": 60, "h": 3600}
_DECIDED = {
    "learning_rate": "it is tuned for every model",
    "weight_decay": "it is tuned for every model",
    "dropout": "it is tuned for every model",
    "num_epochs": "give --budget",
    "max_steps": "give --budget, such as --budget 500steps",
    "warmup_steps": "it is a tenth of the steps of every training",
    "seed": "give --seeds",
}


class Budget(NamedTuple):
    """How long: seconds for all of the comparison, or steps of every training; the other is None."""

    seconds: float | None
    steps: int | None


def parse_budget(text: str) -> Budget:
    """`2h`, `45min`, `90s`, or `500steps`.

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*(s|min|h|steps)", text.strip())
    if match is None or not float(match[1]):
        raise InputError(
            f"--budget is {text!r}; give the time for all trainings, such as 2h or 45min, or the steps of each, "
            f"such as 500steps"
        )
    if match[2] == "steps":
        if "." in match[1]:
            raise InputError(f"--budget is {text!r}; give a whole number of steps")
        return Budget(None, int(match[1]))
    return Budget(float(match[1]) * _UNITS[match[2]], None)


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Raises:
        InputError: something of it cannot be used.
    """

    preset: str = "mu-sota"
    data: str = "pydocs"
    questions: tuple[str, ...] = QUESTIONS
    seeds: int = 3
    budget: str = "2h"
    trials: int = 12
    controls: bool = False
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
        for question in self.questions:
            if question not in QUESTIONS:
                raise InputError(f"--match has {question!r}; choose among {','.join(QUESTIONS)}")
        if not self.questions or len(set(self.questions)) < len(self.questions):
            raise InputError(
                f"--match is {','.join(self.questions)!r}; name each of {','.join(QUESTIONS)} at most once"
            )
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}; give at least 1, and 3 for intervals that say something")
        if self.controls and self.seeds < 3:
            raise InputError(f"--controls needs at least 3 seeds, since {self.seeds} can hardly show a difference")
        parse_budget(self.budget)
        settings_tried(self.trials)
        for key, reason in _DECIDED.items():
            if key in self.overrides:
                raise InputError(f"--set {key} has no place in a comparison: {reason}")

    def command(self, out: Path) -> str:
        """That makes this comparison."""
        parts = ["mu-sota", "compare", "--preset", self.preset, "--data", self.data]
        parts += ["--match", ",".join(self.questions), "--seeds", str(self.seeds), "--budget", self.budget]
        parts += ["--trials", str(self.trials), *(["--controls"] if self.controls else [])]
        for key, value in self.overrides.items():
            parts += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
        parts += ["--out", str(out)]
        return shlex.join(parts)


@dataclass(frozen=True)
class Plan:
    """All that fixes a comparison; the same plan gives the same trainings.

    Attributes:
        arms: MU first, controls last.
        steps: optimizer steps of every training that counts.
        batch_tokens: tokens of a step.
        overlap: tokens that evaluation reads for each that it predicts: 1, or more where its windows overlap.
        rungs: of the tuning of every model but the controls.
        seeds: how many; seed 0 and up.
        curve_tokens: of the validation split, what curves and tuning look at.
        final_tokens: of validation and test split together.
        micro_batch_size: sequences at once.
        precision: of training.
    """

    arms: tuple[Arm, ...]
    steps: int
    batch_tokens: int
    overlap: float
    rungs: tuple[Rung, ...]
    seeds: int
    curve_tokens: int
    final_tokens: int
    micro_batch_size: int
    precision: str

    def seeds_of(self, arm: Arm) -> range:
        """The seeds of the trainings of one model."""
        first = self.seeds if arm.new_seeds else 0
        return range(first, first + self.seeds)

    def training_seconds(self, arm: Arm, steps: int, points: int) -> float:
        """Of one training with its evaluations."""
        return steps * arm.seconds_per_step + points * self.evaluation_seconds(arm, self.curve_tokens)

    def evaluation_seconds(self, arm: Arm, tokens: int) -> float:
        """Of evaluating so many tokens."""
        return FORWARD_SHARE * arm.seconds_per_step * tokens * self.overlap / self.batch_tokens

    def tuning_seconds(self, arm: Arm) -> float:
        """Of all trials of one model."""
        if arm.control_of:
            return 0.0
        return sum(rung.trials * self.training_seconds(arm, rung.steps, 1) for rung in self.rungs)

    def arm_seconds(self, arm: Arm) -> float:
        """Of all work on one model."""
        once = self.training_seconds(arm, self.steps, CURVE_POINTS) + self.evaluation_seconds(arm, self.final_tokens)
        return self.tuning_seconds(arm) + self.seeds * once

    @property
    def seconds(self) -> float:
        """Of everything."""
        return sum(self.arm_seconds(arm) for arm in self.arms)

    @property
    def trainings(self) -> int:
        """How many, tuning included."""
        tuned = sum(arm.control_of is None for arm in self.arms)
        return tuned * sum(rung.trials for rung in self.rungs) + len(self.arms) * self.seeds

    def as_dict(self) -> dict[str, Any]:
        """For `plan.json`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arms = [
            {f.name: getattr(arm, f.name) for f in dataclasses.fields(arm)}
            | {"config": arm.config.to_dict(), "parameters": arm.parameters._asdict()}
            for arm in self.arms
        ]
        return plain | {"arms": arms, "rungs": [rung._asdict() for rung in self.rungs]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Plan":
        """What `as_dict` gave."""
        arms = tuple(
            Arm(
                **arm | {"config": config_from_dict(arm["config"]), "parameters": Parameters(**arm["parameters"])},
            )
            for arm in content["arms"]
        )
        return cls(**content | {"arms": arms, "rungs": tuple(Rung(**rung) for rung in content["rungs"])})


def make_plan(
    arms: Sequence[Arm], request: Request, run: RunSettings, corpus: Corpus, micro_batch_size: int, precision: str
) -> Plan:
    """The plan whose estimated time is the budget, if that is a time.

    Raises:
        InputError: the budget is too short for as many trainings.
    """
    budget = parse_budget(request.budget)

    def plan(steps: int) -> Plan:
        batch_tokens = run.batch_size * run.window
        # So long that evaluating the curve takes about a tenth of a training.
        curve = max(round(0.1 * steps * batch_tokens / CURVE_POINTS / FORWARD_SHARE), _SMALLEST_CURVE)
        return Plan(
            tuple(arms),
            steps,
            batch_tokens,
            run.window / (run.eval_stride or run.window),
            tuple(rungs(request.trials, steps)),
            request.seeds,
            min(curve, corpus.validation.n_predicted),
            corpus.validation.n_predicted + corpus.test.n_predicted,
            micro_batch_size,
            precision,
        )

    if budget.steps is not None:
        if budget.steps < CURVE_POINTS:
            raise InputError(f"--budget is {request.budget!r}; give at least {CURVE_POINTS} steps")
        return plan(budget.steps)
    assert budget.seconds is not None
    least = plan(CURVE_POINTS)
    if least.seconds > budget.seconds:
        raise InputError(
            f"--budget is {request.budget!r}, but {CURVE_POINTS} steps of each of {least.trainings} trainings, with "
            f"their evaluation, already take about {duration(least.seconds)}; give more, or fewer --seeds, --trials or "
            f"--match"
        )
    low, high = CURVE_POINTS, 10**9
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan(middle).seconds <= budget.seconds else (low, middle)
    # Two digits are enough for an estimate, and make a number that people can repeat.
    unit = 10 ** max(int(math.log10(low)) - 1, 0)
    return plan(max(low // unit * unit, CURVE_POINTS))


def describe(plan: Plan, run: RunSettings, corpus: Corpus, where: str) -> str:
    """The page that `--plan` prints."""
    tokens = plan.steps * plan.batch_tokens
    lines = [
        f"Data {corpus.source}: {corpus.train.n_predicted:,} training tokens, {corpus.validation.n_predicted:,} "
        f"validation, {corpus.test.n_predicted:,} test; vocabulary {len(corpus.tokenizer):,}; on {where}",
        f"Every training: {plan.steps:,} steps of {run.batch_size} x {run.window} tokens, {tokens:,} in all "
        f"({tokens / corpus.train.n_predicted:.2f} times the text); for one seed the same windows in the same order",
        "Every model: "
        + ", then ".join(f"{rung.trials} settings x {rung.steps:,} steps" for rung in plan.rungs)
        + f", then the best x {plan.seeds} seeds",
        "",
        f"{'model':58}{'parameters':>12}{'outside*':>12}{'FLOPs/token':>13}{'equal to':>10}{'s/step':>9}{'all in':>15}",
    ]
    for arm in plan.arms:
        equal = "-" if arm.match_ratio is None else f"{arm.match_ratio:.2%}"
        lines.append(
            f"{arm.title:58}{arm.parameters.total:>12,}{arm.parameters.outside:>12,}"
            f"{arm.flops_per_token / 1e6:>11.2f} M{equal:>10}{arm.seconds_per_step:>9.3f}"
            f"{duration(plan.arm_seconds(arm)):>15}"
        )
    lines += [
        "* outside embeddings, token tables and output projection",
        "",
        f"{plan.trainings} trainings, about {duration(plan.seconds)} in all",
    ]
    return "\n".join(lines)


def asked_settings(settings: Settings) -> dict[str, Any]:
    """Settings of run and model, for records and to see whether a comparison is the same."""
    left_out = {*_DECIDED, "micro_batch_size", "log_steps", "checkpoint_minutes", "trackers"}
    return settings.run.model_dump(exclude=left_out) | {
        key: getattr(settings.model, key) for key in MODEL_KEYS if key not in ("dropout",)
    }
