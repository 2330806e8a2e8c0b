"""Lessons in steering: where a block is moved, the layers after it learn to follow, in what it is named for alone.

A block can hold what its name says, and what is written next may follow it loosely. So a few windows are read again
with one block of every token moved from one class of its words towards another, and the model learns to predict there
what it predicts unmoved, but with each next token made likelier or less likely by whether it has the property that the
block stands for: exponential tilting, q(w) ~ p(w) exp(strength * property(w)). All else in q is as it was.

Which words are of a class, and which tokens have a property, is told by what targets are made of. For A and M those
are other lists than steering is measured with; for P and E signs and capitals are the same in both.

Legend: T tokens, S values a block, V vocabulary, K targets, M moved blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mu_sota.inspection.lexicons import tags, valence
from mu_sota.inspection.steering import POLES, token_properties
from mu_sota.inspection.targets import Target
from mu_sota.model.blocks import BLOCKS

_NAMES = [block.name for block in BLOCKS]
_KEPT = 0.99  # of the sums that means are taken from, a step
_TILTS = {"P": 0.75, "E": 0.75, "A": 1.5, "M": 1.5}  # of a property's logit, for a move of strength 1
_STRENGTHS = (2.0, -2.0, 1.0, -1.0)


class SteeringLessons(nn.Module):
    """Keeps the means of the classes that blocks are moved between, and says what is to follow from a move.

    Args:
        targets: of the text.
        tokenizer: of the model.
        block_size: S.
    """

    sums: Tensor  # [M, 2, S]
    counts: Tensor  # [M, 2]
    properties: Tensor  # [M, V]

    def __init__(self, targets: Sequence[Target], tokenizer: PreTrainedTokenizerFast, block_size: int) -> None:
        super().__init__()
        columns = {(target.block, target.name): number for number, target in enumerate(targets)}
        lessons = [poles for poles in POLES if (poles.block, poles.target) in columns]
        self.blocks = [poles.block for poles in lessons]
        self.columns = [columns[poles.block, poles.target] for poles in lessons]
        self.classes = [poles.numbers(targets[column]) for poles, column in zip(lessons, self.columns, strict=True)]
        known = taught_properties(tokenizer)[[POLES.index(poles) for poles in lessons]]
        self.register_buffer("sums", torch.zeros(len(lessons), 2, block_size))
        self.register_buffer("counts", torch.zeros(len(lessons), 2))
        self.register_buffer("properties", known, persistent=False)

    @torch.no_grad()
    def note(self, blocks: Tensor, labels: Tensor) -> None:
        """Take the states of labelled words into the means.

        Args:
            blocks: [B, T, N, S].
            labels: [B, T, K], -1 where there is none.
        """
        self.sums *= _KEPT
        self.counts *= _KEPT
        for number, (block, column, kinds) in enumerate(zip(self.blocks, self.columns, self.classes, strict=True)):
            values = blocks[:, :, _NAMES.index(block)].float()
            for pole, classes in enumerate(kinds):
                found = torch.isin(labels[..., column], torch.tensor(classes, device=labels.device))[..., None]
                self.sums[number, pole] += (values * found).sum((0, 1))
                self.counts[number, pole] += found.sum()

    def turn(self, step: int) -> tuple[int, float]:
        """Which lesson a step has, and the strength of its move."""
        count = len(self.blocks)
        return step % count, _STRENGTHS[step // count % len(_STRENGTHS)]

    def move(self, number: int, strength: float) -> Tensor:
        """What is added to the blocks of every token, [N, S]."""
        away, towards = self.sums[number] / self.counts[number, :, None].clamp(min=1.0)
        move = self.sums.new_zeros(len(_NAMES), self.sums.shape[-1])
        move[_NAMES.index(self.blocks[number])] = strength * (towards - away)
        return move

    def known(self, number: int) -> Tensor:
        """1 if words of both classes have been seen of late, else 0: then the block cannot be moved."""
        return (self.counts[number].amin() >= 1).float()

    def wanted(self, log_probs: Tensor, number: int, strength: float) -> Tensor:
        """What should be predicted with the block moved, [..., V], of what is predicted without."""
        tilt = _TILTS[self.blocks[number]] * strength
        return (log_probs + tilt * self.properties[number]).log_softmax(-1)


def taught_properties(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[4, V], for each of `POLES`: 1 of tokens that a move should make likelier, -1 of its opposites, else 0."""
    tag, tenses = tags(), {"VBD": 1.0, "VBZ": -1.0, "VBP": -1.0}

    def tense(text: str) -> float:
        return tenses.get(tag.get(text.strip(), ""), 0.0) if text[:1] == " " else 0.0

    return token_properties(tokenizer, valence(), tense)
