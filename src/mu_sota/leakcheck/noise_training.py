"""Training on noise: nobody can predict independent uniform tokens, so a model that does sees them.

Legend: B batch, T time, K ids that are drawn.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import attached
from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .model_adapter import ModelUnderTest
from .random_state import random_state_kept
from .report import Result
from .snapshot import Snapshot

CHECK = "uniform tokens"

NUM_IDS = 32
"""Ids that are drawn: few, so that a leak is learned soon. Whatever the vocabulary, no causal model gets below ln K."""

PROOF = math.log(1e9)
"""Log of the e-process, in nats, beyond which a model sees its tokens: by chance at most once in a billion looks."""

BATCH, LENGTH = 32, 32
LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
LOOK_STEPS = 25
"""Optimizer steps between two looks at fresh tokens."""

MARGIN = 3
"""A model is trained enough after so many times the steps after which a planted leak was found."""


class EProcess(NamedTuple):
    """Evidence against "the model does not see the tokens that it predicts".

    Every prediction that gives the next token probability p multiplies the e-process by K p. If tokens are independent
    and uniform and the model does not see them, K p has an expectation of at most 1 whatever came before, since the K
    probabilities sum to at most 1. So by Ville's inequality the e-process exceeds 10^9 with a probability of at most
    10^-9, whatever the model has learned. See Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid
    inference".

    Args:
        log_value: in nats: the sum of the losses' distances below ln K.
        predictions: their number.
    """

    log_value: float
    predictions: int

    @property
    def proves_a_leak(self) -> bool:
        return self.log_value > PROOF

    @property
    def mean_gain(self) -> float:
        """Nats a token below ln K."""
        return self.log_value / self.predictions

    @classmethod
    def of(cls, losses: list[Tensor], num_ids: int) -> "EProcess":
        """From losses in nats, on tokens drawn from so many."""
        gains = math.log(num_ids) - torch.cat([loss.flatten() for loss in losses]).double()
        return cls(gains.sum().item(), gains.numel())


class _Trained(NamedTuple):
    evidence: EProcess
    mode: str
    steps: int
    num_ids: int


def train_on_uniform_tokens(
    build: Callable[[], nn.Module],
    seconds: float = 60.0,
    progress: Callable[[float, str], None] = lambda elapsed, activity: None,
) -> Result:
    """Train a model on independent uniform tokens, fresh at every step: does it learn to predict them?

    A second model, with the next token's embedding added to its input, is trained first: a control that shows how many
    steps it takes this architecture to use a leak. Afterwards both modules are restored.

    Args:
        build: makes the untrained module; called twice.
        seconds: for both trainings together; a leak ends them early.
        progress: called with the seconds that have passed and the current activity.

    Raises:
        InputError: `build` returns no module, the same one twice, or two that share weights; or `seconds` is no number
            above 0.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds is {seconds}, but must be a number of seconds above 0")
    start = time.monotonic()

    def report(activity: str) -> None:
        progress(time.monotonic() - start, activity)

    with random_state_kept():
        model, other = build(), build()
        if not isinstance(model, nn.Module):
            raise InputError(f"only a module can be trained, but this is {model!r:.80}")
        if model is other:
            raise InputError("the two models that are trained are the same object; make a new one at every call")
        if isinstance(other, nn.Module) and set(model.parameters()) & set(other.parameters()):
            raise InputError("the two models that are trained share weights; make new ones at every call")
        snapshot = Snapshot([model, other], hooks=True)
        try:
            with _next_token_added(other) as planted:
                control = _train(other, 1, seconds / 3, lambda state: report(f"control with a planted leak, {state}"))
            left = seconds - (time.monotonic() - start)
            trained = _train(model, 2, left, lambda state: report(f"training on uniform tokens, {state}"))
        except (InputError, RuntimeError) as error:  # it diverged; no derivative; no memory
            return Result(CHECK, "skipped", meaning=f"it could not be trained: {one_line(error)}")
        finally:
            snapshot.restore()
    return _result(trained, control, bool(planted))


def _result(trained: _Trained, control: _Trained, planted: bool) -> Result:
    evidence, unit = trained.evidence, f"nats a token below ln {trained.num_ids}"
    mean, tolerance = evidence.mean_gain, PROOF / evidence.predictions
    if evidence.proves_a_leak:
        meaning = (
            f"after {trained.steps} steps it predicts independent uniform tokens that it has never met, in "
            f"{trained.mode} mode, {mean:.3f} nats a token better than anyone can"
        )
        return Result(CHECK, "leak", mean, tolerance, unit, meaning)
    if not planted:
        why = "it has no nn.Embedding in which a leak could be planted to see whether it would have been learned"
    elif not control.evidence.proves_a_leak:
        why = f"{control.steps} steps did not teach it even a leak that was planted"
    elif trained.steps < MARGIN * control.steps:
        why = f"{trained.steps} steps, and a planted leak took {control.steps}"
    else:
        remark = f"{trained.steps} steps; in a control, a leak planted on purpose was found after {control.steps}"
        return Result(CHECK, "ok", max(mean, 0.0), tolerance, unit, remark)
    return Result(CHECK, "skipped", meaning=f"too little to tell: {why}; give it more seconds, or make it smaller")


def _train(module: nn.Module, seed: int, seconds: float, report: Callable[[str], None]) -> _Trained:
    """Train until a leak is proved or the time is up. The evidence is that of the last look, in the better mode."""
    tested = ModelUnderTest(module)
    length = min(LENGTH, tested.positions or LENGTH)
    drawn = tested.drawn_ids()[:NUM_IDS]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if not weights:
        raise InputError("the model has no weights that could be trained")
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))

    def losses() -> Tensor:
        """[B, T - 1] in nats, on fresh tokens."""
        ids = drawn[torch.randint(len(drawn), (BATCH, length), generator=generator)].to(tested.device)
        logits = tested.logits(ids)[:, :-1]
        return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")

    start, steps = time.monotonic(), 0
    while True:
        training = []
        module.train()
        for _ in range(LOOK_STEPS):
            loss = losses()
            training.append(loss.detach())
            optimizer.zero_grad()
            loss.mean().backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            steps += 1
            if time.monotonic() - start > seconds:
                break
        module.eval()
        with torch.no_grad():
            evaluation = [losses() for _ in training]
        looks = {"training": EProcess.of(training, len(drawn)), "eval": EProcess.of(evaluation, len(drawn))}
        mode = max(looks, key=lambda name: looks[name].log_value)
        evidence = looks[mode]
        report(f"step {steps}: {evidence.mean_gain:+.4f} nats a token against ln {len(drawn)} ({mode} mode)")
        if evidence.proves_a_leak or time.monotonic() - start > seconds:
            return _Trained(evidence, mode, steps, len(drawn))


@contextmanager
def _next_token_added(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Plant a leak: every token's embedding has that of the next token added. Yields the embeddings that were used."""
    planted: list[nn.Module] = []

    def add_next(embedding: nn.Module, args: Any, output: Any) -> Tensor | None:
        ids = args[0] if args else None
        if not isinstance(ids, Tensor) or not isinstance(output, Tensor) or ids.ndim != 2 or len(ids) == 1:
            return None  # not the tokens: positions, for one
        if embedding not in planted:
            planted.append(embedding)
        return output + output.roll(-1, dims=1)

    embeddings = ModelUnderTest(module).embeddings()
    with attached(embedding.register_forward_hook(add_next) for embedding in embeddings):
        yield planted
