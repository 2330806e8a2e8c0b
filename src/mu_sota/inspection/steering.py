"""Steering: one block of every token moved from one kind of words towards another, and what that does to what follows.

The direction is the difference of the block's means over words of two kinds (Marks and Tegmark 2023,
arXiv:2310.06824; Turner et al. 2023, arXiv:2308.10248), a move of strength 1 the whole of it. Of which kind a word is,
the rules and word lists of `targets.py` say, so that no labelled text is needed.

Legend: P pieces of text, T tokens, V vocabulary, N = 16 blocks, S values a block.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mu_sota.common.hooks import attached
from mu_sota.model.blocks import BLOCKS, join_blocks, split_blocks
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM

from .ablation import readers
from .lexicons import polarity
from .targets import Target

NAMES = [block.name for block in BLOCKS]
STRENGTH = 2.0
"""At which the effects of steering are measured, in both directions."""


class Direction(NamedTuple):
    """Where a block is steered to.

    Attributes:
        block: its name.
        away, towards: the two kinds, in words.
        vector: [S], the difference of the block's means.
    """

    block: str
    away: str
    towards: str
    vector: list[float]


class Poles(NamedTuple):
    """The two kinds of words between which a block is steered.

    Attributes:
        block: its name.
        target: one of the block's `targets.block_targets`.
        away, towards: names of its classes.
        kinds: both, in words.
    """

    block: str
    target: str
    away: tuple[str, ...]
    towards: tuple[str, ...]
    kinds: tuple[str, str]

    def numbers(self, target: Target) -> list[list[int]]:
        """Numbers of the classes of either kind."""
        return [
            [number for number, name in enumerate(target.names) if name in kind] for kind in (self.away, self.towards)
        ]


POLES = (
    Poles("P", "place in the sentence", ("1",), ("15", "20"), ("2nd word of a sentence", "16th or later")),
    Poles("E", "capital", ("none",), ("begin", "inside"), ("small letters", "a capital within a sentence")),
    Poles("A", "affect", ("negative",), ("positive",), ("negative", "positive")),
    Poles("M", "verb form", ("present", "third person"), ("past",), ("present", "past")),
)


def directions(blocks: Tensor, targets: Sequence[Target]) -> list[Direction]:
    """Of each of `POLES`, where the text has words of both kinds.

    Args:
        blocks: [T, N, S], of the text's tokens.
        targets: of the same tokens.
    """
    by_name = {(target.block, target.name): target for target in targets}
    found = []
    for poles in POLES:
        if target := by_name.get((poles.block, poles.target)):
            values = blocks[:, NAMES.index(poles.block)]
            kinds = [values[np.isin(target.labels, numbers)] for numbers in poles.numbers(target)]
            if all(len(kind) for kind in kinds):
                away, towards = (kind.mean(0) for kind in kinds)
                found.append(Direction(poles.block, *poles.kinds, (towards - away).tolist()))
    return found


def recorded_directions(steering: Mapping[str, Any]) -> list[Direction]:
    """Those of a record that `measure_steering` made."""
    return [Direction(*(row[name] for name in Direction._fields)) for row in steering["directions"]]


@contextmanager
def steered(model: MuForCausalLM, place: int, known: Iterable[Direction], moves: Mapping[str, float]) -> Iterator[None]:
    """Within the context, blocks of every token are moved where the state is read at a place, in `generate` too.

    Args:
        place: as `ablation.readers` counts them.
        known: directions, one a block.
        moves: strengths by the name of the block; below 0 away from where the direction points.

    Raises:
        InputError: there is no direction for a block.
    """
    by_block = {direction.block: direction for direction in known}
    move = torch.zeros(len(NAMES), model.config.block_size)
    for name, strength in moves.items():
        if name not in by_block:
            raise InputError(f"there is no direction to steer block {name!r} in; there is for {', '.join(by_block)}")
        move[NAMES.index(name)] = strength * torch.tensor(by_block[name].vector)

    def add(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (with_move(inputs[0], move), *inputs[1:])

    hook = readers(model)[place].register_forward_pre_hook
    with attached(hook(add) for _ in range(bool(moves))):
        yield


PROPERTIES = {
    "P": "ends a sentence",
    "E": "begins with a capital",
    "A": "is positive rather than negative",
    "M": "ends in -ed rather than in -s",
}
"""What of the next token should move when a block is steered; see `token_properties`."""


def token_properties(
    tokenizer: PreTrainedTokenizerFast, affect: Mapping[str, str], tense: Callable[[str], float]
) -> Tensor:
    """[4, V], in the order of `PROPERTIES`: 1, 0 or -1 of every token.

    Args:
        affect: `positive` or `negative` of words.
        tense: 1, 0 or -1 of a token's text.
    """
    signs = {"positive": 1.0, "negative": -1.0}
    rows = []
    for token in range(len(tokenizer)):
        text = str(tokenizer.decode([token]))
        word, begins = text.strip(), text[:1] == " "
        rows.append(
            (
                float(word in (".", "!", "?")),
                float(begins and word[:1].isupper()),
                signs.get(affect.get(word, ""), 0.0) if begins else 0.0,
                tense(text),
            )
        )
    return torch.tensor(rows).T


def measured_properties(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Those that steering is measured with: affect by VADER, the form of a verb by its ending."""

    def ending(text: str) -> float:
        word = text.strip()
        return (word.endswith("ed") - word.endswith("s")) * float(len(word) > 3 and word.islower())

    return token_properties(tokenizer, polarity(), ending)


def with_move(state: Tensor, move: Tensor) -> Tensor:
    """A state [..., D] with a move [N, S] added to its blocks."""
    return join_blocks(split_blocks(state) + move.to(state))


@torch.no_grad()
def measure_steering(
    model: MuForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Tensor,
    place: int,
    known: Sequence[Direction],
    progress: Callable[[Sequence[Direction]], Iterable[Direction]] = iter,
) -> list[dict[str, Any]]:
    """How predictions move when each block is steered by `STRENGTH` and by minus as much.

    Args:
        texts: [P, T + 1] int64, held out.

    Returns:
        For each direction: `moved`, for each of `PROPERTIES` its expectation under the predicted next token, steered
        forwards minus steered backwards, in standard deviations of that expectation over unsteered tokens; and
        `loss_rise`, nats a token, the mean of both.
    """
    properties = measured_properties(tokenizer).to(model.device)
    texts = texts.to(model.device)

    def read(moves: Mapping[str, float]) -> tuple[Tensor, float]:
        """Expectations [P, T, 4], and the loss."""
        expected, losses = [], []
        for piece in texts:
            with steered(model, place, known, moves):
                log_probs = model(piece[None, :-1]).logits[0].float().log_softmax(-1)
            expected.append(log_probs.exp() @ properties.T)
            losses.append(-log_probs.gather(-1, piece[1:, None]).mean())
        return torch.stack(expected), float(torch.stack(losses).mean())

    usual, loss = read({})
    spread = usual.flatten(0, 1).std(0).clamp(min=1e-9)
    found = []
    for direction in progress(known):
        (forwards, one), (backwards, other) = (read({direction.block: sign * STRENGTH}) for sign in (1, -1))
        moved = ((forwards - backwards).mean((0, 1)) / spread).tolist()
        found.append(
            direction._asdict()
            | {"moved": dict(zip(PROPERTIES, moved, strict=True)), "loss_rise": (one + other) / 2 - loss}
        )
    return found
