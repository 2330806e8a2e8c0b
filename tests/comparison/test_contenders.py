"""Sizes by time, with a clock of its own; what the models of a comparison are called."""

import itertools
import random

import pytest
import torch
from transformers import PreTrainedConfig

from mu_sota import MuConfig
from mu_sota.comparison import contenders as arms
from mu_sota.comparison.contenders import QUESTIONS, make_arms
from mu_sota.comparison.size_matching import count_parameters
from mu_sota.comparison.timing import Stepper
from mu_sota.settings.load import load_settings

LIKE = MuConfig(vocab_size=500, num_hidden_layers=2, max_position_embeddings=32)
RUN = load_settings("quickstart", None, {"window": 32, "stride": 32}).run


class Clock(Stepper):
    """Steps that take what the size says, and some noise."""

    def __init__(self, share: float, growth: float, noise: float) -> None:
        super().__init__(RUN, 16, "fp32", torch.device("cpu"))
        self.share, self.growth, self.noise = share, growth, noise
        self.random = random.Random(0)

    def true_seconds(self, config: PreTrainedConfig) -> float:
        if isinstance(config, MuConfig):
            return 1.0
        return self.share + (count_parameters(config).outside / 400_000) ** self.growth

    def seconds(self, config: PreTrainedConfig) -> float:
        return self.true_seconds(config)

    def ratio(self, config: PreTrainedConfig, other: PreTrainedConfig) -> float:
        return (
            self.true_seconds(config) / self.true_seconds(other) * self.random.uniform(1 - self.noise, 1 + self.noise)
        )


@pytest.mark.parametrize(
    ("share", "growth", "noise"),
    [(0.0, 1.0, 0.0), (0.5, 0.6, 0.0), (0.3, 1.0, 0.02), (0.7, 0.9, 0.02), (0.0, 0.5, 0.02)],
)
def test_a_model_of_the_same_time_is_found(share: float, growth: float, noise: float) -> None:
    """Whatever part of a step does not grow with the model, and in spite of noise."""
    clock, told = Clock(share, growth, noise), []
    for arm in make_arms(LIKE, RUN, ["time"], controls=False, stepper=clock, tell=told.append)[1:]:
        assert clock.true_seconds(arm.config) == pytest.approx(1, abs=arms.TIME_TOLERANCE + noise)
        assert arm.match_ratio == pytest.approx(clock.true_seconds(arm.config), rel=noise + 1e-9)
        assert arm.seconds_per_step == arm.match_ratio


def test_one_lucky_timing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a machine is busy, a model of another size may once seem as fast."""
    clock, timings = Clock(0.0, 1.0, 0.0), itertools.count()
    honest = clock.ratio
    monkeypatch.setattr(clock, "ratio", lambda *configs: honest(*configs) if next(timings) else 1.0)
    arm = make_arms(LIKE, RUN, ["time"], controls=False, stepper=clock, tell=lambda arm: None)[1]
    assert clock.true_seconds(arm.config) == pytest.approx(1, abs=arms.TIME_TOLERANCE)


def test_every_question_has_both_families_and_controls_come_last() -> None:
    told: list[arms.Arm] = []
    made = make_arms(LIKE, RUN, QUESTIONS, controls=True, stepper=Clock(0.3, 1.0, 0.0), tell=told.append)
    assert [arm.name for arm in made] == [
        "mu",
        *(f"{family}-{what}" for family in ("gpt2", "llama") for what in ("params", "trunk", "flops", "time")),
        "control-again",
        "control-slow",
    ]
    assert told == made[:-2]
    assert len({arm.title for arm in made}) == len(made)
    assert [arm.control_of for arm in made[-2:]] == ["gpt2-params"] * 2
    assert made[-1].config is made[1].config
    assert made[-1].rate_factor == 0.1
    assert made[-2].new_seeds
