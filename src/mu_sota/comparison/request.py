"""What a user can ask of a comparison; nothing here needs PyTorch, so a wrong request is refused at once."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mu_sota.common.text import as_word
from mu_sota.model.errors import InputError
from mu_sota.settings.presets import DEFAULT_PRESET

from .hyperparameter_search import first_trials
from .questions import QUESTIONS, Question

_UNITS = {"s": 1, "min": 60, "h": 3600}
DECIDED = {
    "learning_rate": "it is tuned for every model",
    "weight_decay": "it is tuned for every model",
    "dropout": "it is tuned for every model",
    "num_epochs": "give --budget",
    "max_steps": "give --budget, such as --budget 500steps",
    "warmup_steps": "it is a tenth of the steps of every training",
    "seed": "give --seeds",
    "compile": "no model's layers are compiled",
}
"""Settings that a comparison decides by itself, and why they cannot be set."""


class Budget(NamedTuple):
    """Seconds for all of the comparison, or steps of every final run; the other is None."""

    seconds: float | None
    steps: int | None


def parse_budget(text: str) -> Budget:
    """Read `2h`, `45min`, `90s`, or `500steps`.

    Raises:
        InputError: the text is something else.
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
    """What the options of `mu-sota compare` say.

    Attributes:
        preset: of the MU model and of how all are trained.
        data: name or path of the text.
        questions: one or more of `QUESTIONS`, in any order.
        seeds: final runs of each contender.
        budget: as `parse_budget` reads it.
        trials: hyperparameters tried for each contender.
        tuned_in: record or folder of an earlier comparison whose choices are taken instead; then nothing is tried.
        controls: True to add controls.
        overrides: settings that differ from the preset's.

    Raises:
        InputError: one of them cannot be used.
    """

    preset: str = DEFAULT_PRESET
    data: str = "pydocs"
    questions: tuple[Question, ...] = QUESTIONS
    seeds: int = 3
    budget: str = "2h"
    trials: int = 12
    tuned_in: str | None = None
    controls: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

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
        first_trials(self.trials)
        for key, reason in DECIDED.items():
            if key in self.overrides:
                raise InputError(f"--set {key} cannot be set in a comparison: {reason}")

    @property
    def ordered_questions(self) -> list[Question]:
        """The questions in the order of `QUESTIONS`."""
        return [question for question in QUESTIONS if question in self.questions]

    def command(self, out: Path) -> str:
        """The command that makes this comparison in `out`."""
        parts = ["mu-sota", "compare", "--preset", self.preset, "--data", self.data]
        parts += ["--match", ",".join(self.questions), "--seeds", str(self.seeds), "--budget", self.budget]
        parts += ["--tuned-in", self.tuned_in] if self.tuned_in else ["--trials", str(self.trials)]
        parts += ["--controls"] if self.controls else []
        for key, value in self.overrides.items():
            parts += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
        return f"{shlex.join(parts)} --out {as_word(out)}"
