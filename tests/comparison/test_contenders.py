"""Sizes by time, with a timer of its own; what the models of a comparison are called."""

import itertools
import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from mu_sota import MuConfig
from mu_sota.comparison.baselines import tables_of
from mu_sota.comparison.contenders import Contender, make_contenders
from mu_sota.comparison.questions import QUESTIONS
from mu_sota.comparison.size_matching import TIME_TOLERANCE, count_parameters
from mu_sota.comparison.timing import StepTimer
from mu_sota.settings.load import load_settings

LIKE = MuConfig(vocab_size=500, num_hidden_layers=2, max_position_embeddings=32)
RUN = load_settings("quickstart", None, {"window": 32, "stride": 32}).run


class MadeUpTimer(StepTimer):
    """Steps that take what the size says, and some noise."""

    def __init__(self, share: float, growth: float, noise: float) -> None:
        super().__init__(RUN, 16, "fp32", torch.device("cpu"))
        self.share, self.growth, self.noise = share, growth, noise
        self.random = random.Random(0)

    def true_seconds(self, config: PreTrainedConfig) -> float:
        if isinstance(config, MuConfig):
            return 1.0
        return self.share + (count_parameters(config).non_embedding / 400_000) ** self.growth

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
    timer, reported = MadeUpTimer(share, growth, noise), list[Contender]()
    for one in make_contenders(LIKE, RUN, ["time"], controls=False, timer=timer, report=reported.append)[1:]:
        assert timer.true_seconds(one.config) == pytest.approx(1, abs=TIME_TOLERANCE + noise)
        assert one.match_ratio == pytest.approx(timer.true_seconds(one.config), rel=noise + 1e-9)
        assert one.seconds_per_step == one.match_ratio


def test_one_lucky_timing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a machine is busy, a model of another size may once seem as fast."""
    timer, timings = MadeUpTimer(0.0, 1.0, 0.0), itertools.count()
    honest = timer.ratio
    monkeypatch.setattr(timer, "ratio", lambda *configs: honest(*configs) if next(timings) else 1.0)
    one = make_contenders(LIKE, RUN, ["time"], controls=False, timer=timer, report=lambda _: None)[1]
    assert timer.true_seconds(one.config) == pytest.approx(1, abs=TIME_TOLERANCE)


@pytest.mark.parametrize(
    ("tables", "families"),
    [
        ({}, ["gpt2", "llama"]),
        ({"pair_table_rows": 40}, ["gpt2", "llama", "llama-tables"]),
        ({"induction_tables": 1}, ["gpt2", "llama", "llama-tables"]),
    ],
)
def test_every_question_has_all_families_and_controls_come_last(tables: dict[str, Any], families: list[str]) -> None:
    """A Llama with MU's tables only where MU has some."""
    like = MuConfig(vocab_size=500, num_hidden_layers=2, max_position_embeddings=32, **tables)
    reported: list[Contender] = []
    made = make_contenders(
        like, RUN, QUESTIONS, controls=True, timer=MadeUpTimer(0.3, 1.0, 0.0), report=reported.append
    )
    assert [one.name for one in made] == [
        "mu",
        *(f"{family}-{what}" for family in families for what in ("params", "trunk", "flops", "time")),
        "control-again",
        "control-slow",
    ]
    assert reported == made[:-2]
    assert len({one.title for one in made}) == len(made)
    assert [one.control_of for one in made[-2:]] == ["gpt2-params"] * 2
    assert made[-1].config is made[1].config
    assert made[-1].rate_factor == 0.1
    assert made[-2].new_seeds
    for one in made[1:-2]:
        expected = tables_of(like) if one.family == "llama-tables" else {"pair_table_rows": 0, "induction_tables": 0}
        assert tables_of(one.config) == expected
