"""The plan of a comparison, decided before anything is trained: contenders, steps, trials, seeds, and their time."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter

from mu_sota.common.outside import in_one_sentence
from mu_sota.common.text import duration
from mu_sota.model.errors import InputError
from mu_sota.training.before_training import choose_precision, default_micro_batch

from .baselines import config_from_dict
from .contenders import Contender, baselines_beside, make_contenders
from .earlier_tuning import EarlierTuning, read_earlier_tuning
from .hyperparameter_search import Rung, make_rungs
from .inputs import Inputs
from .questions import NON_EMBEDDING
from .request import parse_budget
from .single_training import CURVE_POINTS
from .size_matching import Parameters
from .timing import StepTimer

FORWARD_SHARE = 1 / 3
"""Time of evaluating as many tokens as a training step has, over that of the step: of forward and backward, the forward
pass is a third of the operations."""

_SMALLEST_CURVE = 16_384  # tokens


@dataclass(frozen=True)
class Plan:
    """Everything that fixes a comparison; the same plan gives the same training runs.

    Attributes:
        contenders: MU first, controls last.
        steps: optimizer steps of every final run.
        batch_tokens: tokens of a step.
        overlap: tokens that evaluation reads for each that it predicts: 1, or more if its windows overlap.
        rungs: of the tuning of every contender but the controls.
        seeds: number of final runs of each contender; their seeds are 0 and up.
        curve_tokens: of the validation split, those that learning curves and tuning are evaluated on.
        final_tokens: of validation and test split together.
        micro_batch_size: sequences at once.
        precision: of training.
        earlier: hyperparameters that another comparison chose; there are no rungs then.
    """

    contenders: tuple[Contender, ...]
    steps: int
    batch_tokens: int
    overlap: float
    rungs: tuple[Rung, ...]
    seeds: int
    curve_tokens: int
    final_tokens: int
    micro_batch_size: int
    precision: str
    earlier: EarlierTuning | None = None

    def seeds_of(self, contender: Contender) -> range:
        """The seeds of the final runs of one contender."""
        first = self.seeds if contender.new_seeds else 0
        return range(first, first + self.seeds)

    def training_seconds(self, contender: Contender, steps: int, points: int) -> float:
        """Of one training run with its evaluations."""
        return steps * contender.seconds_per_step + points * self.evaluation_seconds(contender, self.curve_tokens)

    def evaluation_seconds(self, contender: Contender, tokens: int) -> float:
        """Of evaluating `tokens` tokens."""
        return FORWARD_SHARE * contender.seconds_per_step * tokens * self.overlap / self.batch_tokens

    def tuning_seconds(self, contender: Contender) -> float:
        """Of all trials of one contender."""
        if contender.control_of:
            return 0.0
        return sum(rung.trials * self.training_seconds(contender, rung.steps, 1) for rung in self.rungs)

    def contender_seconds(self, contender: Contender) -> float:
        """Of all work on one contender."""
        training = self.training_seconds(contender, self.steps, CURVE_POINTS)
        once = training + self.evaluation_seconds(contender, self.final_tokens)
        return self.tuning_seconds(contender) + self.seeds * once

    @property
    def seconds(self) -> float:
        """Of everything."""
        return sum(self.contender_seconds(contender) for contender in self.contenders)

    @property
    def trainings(self) -> int:
        """Number of training runs, trials included."""
        tuned = sum(contender.control_of is None for contender in self.contenders)
        return tuned * sum(rung.trials for rung in self.rungs) + len(self.contenders) * self.seeds

    def as_dict(self) -> dict[str, Any]:
        """For `plan.json`."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        contenders = [
            {field.name: getattr(contender, field.name) for field in dataclasses.fields(contender)}
            | {"config": contender.config.to_dict(), "parameters": contender.parameters.as_dict()}
            for contender in content.pop("contenders")
        ]
        written = {"arms": contenders} | content | {"rungs": [rung._asdict() for rung in self.rungs]}
        del written["earlier"]
        return written | ({"earlier": dataclasses.asdict(self.earlier)} if self.earlier else {})

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Plan":
        """Read what `as_dict` gave.

        Raises:
            InputError: it is something else, as in a file that somebody changed.
        """
        with in_one_sentence("the plan of the comparison is damaged", "give another --out"):
            contenders = tuple(
                Contender(
                    **_checked(Contender, one, made=("config", "parameters"))
                    | {
                        "config": config_from_dict(one["config"]),
                        "parameters": Parameters.from_dict(one["parameters"]),
                    }
                )
                for one in content["arms"]
            )
            return cls(contenders, **_checked(cls, content, made=("arms",)))


def _checked(kind: type, content: dict[str, Any], made: Sequence[str]) -> dict[str, Any]:
    """The values for a dataclass, each of its type, but for those that are made otherwise."""
    types = get_type_hints(kind)
    return {key: TypeAdapter(types[key]).validate_python(value) for key, value in content.items() if key not in made}


def plan_comparison(inputs: Inputs, device: torch.device) -> Plan:
    """Size and time all contenders, which takes minutes and is reported on stderr, and decide the steps.

    Raises:
        InputError: no size of a family matches MU, the budget is too short, or an earlier comparison did not choose for
            all of them.
    """
    request, earlier = inputs.request, None
    if request.tuned_in:
        earlier = read_earlier_tuning(Path(request.tuned_in))
        earlier.require(["mu", *baselines_beside(inputs.config, request.ordered_questions)])
    print("Sizing the models, and timing their steps, which takes minutes:", file=sys.stderr, flush=True)
    run = inputs.run
    micro_batch_size = run.micro_batch_size or default_micro_batch(run, processes=1)
    timer = StepTimer(run, micro_batch_size, choose_precision(run.precision), device)
    contenders = make_contenders(inputs.config, run, request.ordered_questions, request.controls, timer, _report_size)
    return fit_to_budget(contenders, inputs, timer.micro_batch_size, timer.precision, earlier)


def _report_size(contender: Contender) -> None:
    sizes = f"{contender.parameters.total:,} parameters, {contender.seconds_per_step:.3f} s a step"
    print(f"  {contender.title}: {sizes}", file=sys.stderr, flush=True)


def fit_to_budget(
    contenders: Sequence[Contender],
    inputs: Inputs,
    micro_batch_size: int,
    precision: str,
    earlier: EarlierTuning | None = None,
) -> Plan:
    """The longest plan whose estimated time is within the budget, or that of the steps asked for.

    Raises:
        InputError: the budget is too short for the number of training runs.
    """
    request, run, corpus = inputs.request, inputs.run, inputs.corpus
    budget = parse_budget(request.budget)

    def plan(steps: int) -> Plan:
        batch_tokens = run.batch_size * run.window
        # So long that evaluating the curve takes about a tenth of a training.
        curve = max(round(0.1 * steps * batch_tokens / CURVE_POINTS / FORWARD_SHARE), _SMALLEST_CURVE)
        return Plan(
            tuple(contenders),
            steps,
            batch_tokens,
            run.window / (run.eval_stride or run.window),
            () if earlier else tuple(make_rungs(request.trials, steps)),
            request.seeds,
            min(curve, corpus.validation.n_predicted),
            corpus.validation.n_predicted + corpus.test.n_predicted,
            micro_batch_size,
            precision,
            earlier,
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


def describe(plan: Plan, inputs: Inputs, device: torch.device) -> str:
    """The page that `--plan` prints."""
    run, corpus = inputs.run, inputs.corpus
    tokens = plan.steps * plan.batch_tokens
    lines = [
        f"Data {corpus.source}: {corpus.train.n_predicted:,} training tokens, {corpus.validation.n_predicted:,} "
        f"validation, {corpus.test.n_predicted:,} test; vocabulary {len(corpus.tokenizer):,}; on {device.type}",
        f"Every training: {plan.steps:,} steps of {run.batch_size} x {run.window} tokens, {tokens:,} in all "
        f"({tokens / corpus.train.n_predicted:.2f} times the text); for one seed the same windows in the same order",
        "Every model: "
        + (
            f"what the comparison of --tuned-in chose for it in {plan.earlier.steps:,} steps x {plan.seeds} seeds"
            if plan.earlier
            else ", then ".join(f"{rung.trials} settings x {rung.steps:,} steps" for rung in plan.rungs)
            + f", then the best x {plan.seeds} seeds"
        ),
        "",
        f"{'model':58}{'parameters':>12}{'non-emb.*':>12}"
        f"{'FLOPs/token':>13}{'equal to':>10}{'s/step':>9}{'all in':>15}",
    ]
    for contender in plan.contenders:
        equal = "-" if contender.match_ratio is None else f"{contender.match_ratio:.2%}"
        parameters = contender.parameters
        lines.append(
            f"{contender.title:58}{parameters.total:>12,}{parameters.non_embedding:>12,}"
            f"{contender.flops_per_token / 1e6:>11.2f} M{equal:>10}{contender.seconds_per_step:>9.3f}"
            f"{duration(plan.contender_seconds(contender)):>15}"
        )
    lines += [
        f"* non-embedding parameters: {NON_EMBEDDING}",
        "",
        f"{plan.trainings} trainings, about {duration(plan.seconds)} in all",
    ]
    return "\n".join(lines)
