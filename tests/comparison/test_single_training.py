"""One training run of a comparison, against a plain loop in PyTorch, and across an interruption."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR
from transformers import GPT2LMHeadModel, PreTrainedConfig, set_seed

from mu_sota import MuConfig
from mu_sota.comparison.baselines import FAMILIES, Shape, build, load
from mu_sota.comparison.hyperparameter_search import Trial
from mu_sota.comparison.single_training import TrainingSetup, beginning, finish, train_once
from mu_sota.data.corpus import Corpus, load_corpus
from mu_sota.data.windows import EvalWindows, TrainWindows
from mu_sota.settings.load import load_settings
from mu_sota.training.batches import WindowOrder
from mu_sota.training.interrupt import Interrupt, Interrupted

RUN = load_settings("quickstart", None, {"window": 16, "stride": 16, "batch_size": 8}).run
TRIAL = Trial(learning_rate=3e-3, weight_decay=0.1, dropout=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[[Path], Path]) -> Corpus:
    place = tmp_path_factory.mktemp("training")
    return load_corpus(str(make_corpus(place)), vocab_size=300, cache_dir=place / "cache")


def configs(corpus: Corpus) -> dict[str, PreTrainedConfig]:
    mu = MuConfig(vocab_size=len(corpus.tokenizer), num_hidden_layers=1, max_position_embeddings=16)
    shape = Shape(layers=1, width=32, inner=64)
    tables = MuConfig(**mu.to_diff_dict() | {"pair_table_rows": 40, "induction_tables": 2})
    return {"mu": mu} | {name: family.config(shape, tables) for name, family in FAMILIES.items()}


def setup(
    corpus: Corpus, tick: Callable[[int, float], None] = lambda step, loss: None, micro: int = 8
) -> TrainingSetup:
    windows = TrainWindows(corpus.train.tokens, RUN.window, RUN.stride)
    return TrainingSetup(corpus, windows, RUN, micro, "fp32", Interrupt(), tick)


def loss_of(model: Any, corpus: Corpus) -> float:
    """Nats a token on the validation split, from full logits, one window at a time."""
    total = 0.0
    windows = EvalWindows(corpus.validation.tokens, RUN.window, RUN.window)
    with torch.no_grad():
        for window in (windows[index] for index in range(len(windows))):
            logits = model.eval()(window["input_ids"][None]).logits[0]
            total += F.cross_entropy(logits, window["shift_labels"], reduction="sum").item()
    return total / corpus.validation.n_predicted


def test_a_training_run_equals_a_plain_loop(corpus: Corpus, tmp_path: Path) -> None:
    """AdamW on the mean loss of the batch, clipped, one cycle with a tenth of warm-up, decay on matrices alone."""
    steps, seed, config = 30, 3, configs(corpus)["gpt2"]
    record = train_once(setup(corpus, micro=3), config, TRIAL, seed, steps, 3, tmp_path)

    set_seed(seed)
    library_config: Any = build(config, 0.0).config
    model = GPT2LMHeadModel(library_config)
    set_seed(seed)
    model.load_state_dict(build(config, 0.0).state_dict())
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    windows = TrainWindows(corpus.train.tokens, RUN.window, RUN.stride)
    order, done, losses = WindowOrder(len(windows), RUN.batch_size, RUN.batch_size, seed, 0, 1), 0, []
    while done < steps:
        for batch in order:
            if done == steps:
                break
            items = [windows[index] for index in batch]
            ids, labels = (torch.stack([item[key] for item in items]) for key in ("input_ids", "shift_labels"))
            loss = F.cross_entropy(model.train()(ids).logits.flatten(0, 1), labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            done += 1
        order.epoch += 1
    expected = loss_of(model, corpus)
    assert record["curve"][-1]["validation_loss"] == pytest.approx(expected, abs=2e-4)
    assert record["curve"][0]["train_loss"] == pytest.approx(np.mean(losses[:10]), abs=2e-4)
    assert expected < math.log(300) - 1, "it learns"


@pytest.mark.parametrize("name", ["mu", "gpt2", "llama", "llama-tables"])
def test_an_interrupted_training_run_ends_as_if_it_had_not_been(name: str, corpus: Corpus, tmp_path: Path) -> None:
    config, trial, arguments = configs(corpus)[name], TRIAL._replace(dropout=0.1), (0, 20, 4)
    whole = train_once(setup(corpus), config, trial, *arguments, tmp_path / "whole")

    def stop(step: int, loss: float) -> None:
        common.interrupt.received = step == 12

    common = setup(corpus, stop)
    with pytest.raises(Interrupted, match="saved at step 12 of 20"):
        train_once(common, config, trial, *arguments, tmp_path / "parts")
    seen: list[int] = []
    parts = train_once(setup(corpus, lambda step, _: seen.append(step)), config, trial, *arguments, tmp_path / "parts")
    assert seen == list(range(13, 21)), "what was done is not done again"
    clock = ("seconds",)
    for record in (whole, parts):
        assert [row["step"] for row in record["curve"]] == [5, 10, 15, 20]
        record["curve"] = [{k: v for k, v in row.items() if k not in clock} for row in record["curve"]]
        assert record.pop("seconds") > 0
    assert parts == whole
    weights = [load(tmp_path / place / "best").state_dict() for place in ("whole", "parts")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    finish(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["best"], "checkpoints are gone"


@pytest.fixture
def spoiled(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingSetup]:
    """A setup in which the weights of the model in training become `value` after a step."""

    def make(after: int, value: float) -> TrainingSetup:
        models: Any = []  # so that `append` can be part of an expression
        monkeypatch.setattr(
            "mu_sota.comparison.single_training.build",
            lambda *arguments: models.append(build(*arguments)) or models[-1],
        )

        def spoil(step: int, loss: float) -> None:
            if step == after:
                models[0].lm_head.weight.data.fill_(value)

        return setup(corpus, spoil)

    return make


def test_the_best_weights_are_saved_and_not_the_last(
    corpus: Corpus, tmp_path: Path, spoiled: Callable[..., TrainingSetup]
) -> None:
    record = train_once(spoiled(17, 0.0), configs(corpus)["gpt2"], TRIAL, 0, 20, 4, tmp_path)
    losses = [row["validation_loss"] for row in record["curve"]]
    assert record["loss"] == min(losses) == losses[2] < losses[3]
    assert record["best_step"] == 15
    assert loss_of(load(tmp_path / "best"), corpus) == pytest.approx(record["loss"], abs=1e-4)


def test_a_training_run_that_diverges_says_at_which_step(
    corpus: Corpus, tmp_path: Path, spoiled: Callable[..., TrainingSetup]
) -> None:
    record = train_once(spoiled(7, math.nan), configs(corpus)["gpt2"], TRIAL, 0, 20, 4, tmp_path / "late")
    assert (record["diverged"], record["best_step"], len(record["curve"])) == (8, 5, 1)


def test_of_a_training_run_that_diverges_at_once_the_initial_weights_are_the_best(
    corpus: Corpus, tmp_path: Path, spoiled: Callable[..., TrainingSetup]
) -> None:
    config = configs(corpus)["gpt2"]
    record = train_once(spoiled(7, math.nan), config, TRIAL, 0, 20, 2, tmp_path)
    assert (record["diverged"], record["best_step"], record["curve"]) == (8, 0, [])
    set_seed(0)
    untrained = build(config, 0.0)
    kept = load(tmp_path / "best")
    assert torch.equal(kept.lm_head.weight, untrained.lm_head.weight)
    assert record["loss"] == pytest.approx(loss_of(kept, corpus), abs=1e-4)


def test_a_single_evaluation_saves_no_weights(corpus: Corpus, tmp_path: Path) -> None:
    """Trials of tuning are many, and only their loss counts."""
    record = train_once(setup(corpus), configs(corpus)["gpt2"], TRIAL, 0, 4, 1, tmp_path)
    assert record["loss"] > 0
    assert not list(tmp_path.iterdir())


def test_the_beginning_of_a_split(corpus: Corpus) -> None:
    part = beginning(corpus.validation, 100)
    assert part.n_predicted == 100
    assert (part.tokens == corpus.validation.tokens[:101]).all()
    assert beginning(corpus.validation, 10**9).n_predicted == corpus.validation.n_predicted
