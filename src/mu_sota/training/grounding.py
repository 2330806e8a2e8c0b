"""Grounding: while a model learns to predict text, single blocks are also taught what they are named for.

A linear readout of each block, half-way through the layers, predicts that block's targets (`inspection/targets.py`);
its cross-entropy, as a share of what it would be by the classes' frequencies alone, is added to the loss. Readouts are
trained with the model and left behind afterwards: what a block has been taught is measured by probes, on other texts
with other labels. Blocks that would come to hold the same are kept apart.

Legend: B batch, T time, D state, S values a block, V vocabulary, K targets.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu_sota.data.corpus import Corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.inspection.steering import with_move
from mu_sota.inspection.targets import NONE, TAUGHT, Target, block_targets
from mu_sota.model.blocks import BLOCKS, join_blocks, split_blocks
from mu_sota.settings.run import RunSettings

from .batches import WindowDataset
from .steering_lessons import SteeringLessons
from .trainer import READOUTS, MuTrainer

_PARTS_OF_WINDOW = 16
_START_STD = 0.1
_LESSONS = 1.0  # weight of lessons in steering
_ONE_WINDOW_OF = 8  # a lesson reads so few again
_APART = 0.05  # weight of what keeps blocks apart: how alike they are over the tokens that are in the memory at once
_MANY_CLASSES, _EVERY = 1000, 4  # a readout of a vocabulary is asked at every fourth token: it costs most of the time


class BlockReadouts(nn.Module):
    """Linear readouts of single blocks, one for each target.

    They start as if they knew how frequent each class is, and nothing else.

    Args:
        targets: what is read out, beside the token itself, the one before and the position.
        tokens: [T] ids of the text that the targets are of.
        vocab_size: V.
        block_size: S.
        window: tokens of a training window.
    """

    def __init__(
        self, targets: list[Target], tokens: np.ndarray, vocab_size: int, block_size: int, window: int
    ) -> None:
        super().__init__()
        self.window = window
        counts = [np.bincount(target.labels[target.labels != NONE], minlength=target.classes) for target in targets]
        of_tokens = np.bincount(tokens, minlength=vocab_size)
        counts += [of_tokens, of_tokens, np.ones(_PARTS_OF_WINDOW, int)]
        blocks = [*(target.block for target in targets), "I", "C1", "P"]
        self.heads = nn.ModuleList()
        self.factors: list[float] = []
        self.steps = [_EVERY if len(count) > _MANY_CLASSES else 1 for count in counts]
        for block, count, share in zip(blocks, counts, [*map(_labelled, targets), 1.0, 1.0, 1.0], strict=True):
            frequency = (count + 1) / (count + 1).sum()
            head = nn.Linear(block_size, len(count))
            nn.init.normal_(head.weight, std=_START_STD)
            with torch.no_grad():
                head.bias.copy_(torch.from_numpy(np.log(frequency)))
            self.heads.append(head)
            by_chance = -float(frequency @ np.log(frequency)) * share  # nats a token
            self.factors.append(TAUGHT[block].weight / (blocks.count(block) * by_chance))
        names = [block.name for block in BLOCKS]
        self.numbers = [names.index(block) for block in blocks]

    def forward(self, state: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean over blocks of what is not known of their targets, and how alike blocks are.

        A target of which nothing is known but the classes' frequencies counts 1.

        Args:
            state: [B, T, D].
            ids: [B, T].
            labels: [B, T, K], -1 where there is none.
        """
        blocks = split_blocks(state)
        before = F.pad(ids[:, :-1], (1, 0), value=NONE)
        part = torch.arange(ids.shape[1], device=ids.device) * _PARTS_OF_WINDOW // self.window
        every = [*labels.long().unbind(-1), ids, before, part.expand_as(ids)]
        total = state.new_zeros(())
        parts = zip(self.heads, self.numbers, self.steps, self.factors, every, strict=True)
        for head, number, step, factor, wanted in parts:
            asked = slice(step - 1, None, step)
            found = head(blocks[:, asked, number]).flatten(0, 1)
            nll = F.cross_entropy(found, wanted[:, asked].flatten(), ignore_index=NONE, reduction="sum")
            total = total + factor * step * nll
        return total / (ids.numel() * len(set(self.numbers))) + _APART * likeness(blocks)


def likeness(blocks: Tensor) -> Tensor:
    """The sum over pairs of different blocks of their squared linear CKA (Kornblith et al. 2019, arXiv:1905.00414).

    Args:
        blocks: [B, T, N, S].
    """
    state = join_blocks(blocks).flatten(0, 1)
    state = state - state.mean(0)
    products = (state.T @ state).square().unflatten(0, (len(BLOCKS), -1)).unflatten(-1, (len(BLOCKS), -1)).sum((1, 3))
    own = products.diagonal().clamp(min=1e-9).rsqrt()
    return (own[:, None] * products * own).square().triu(1).sum()


def _labelled(target: Target) -> float:
    """The share of tokens that have a label."""
    return float((target.labels != NONE).mean())


class GroundedWindows(WindowDataset):
    """Training windows with the labels of their tokens, `block_labels` [B, T, K]."""

    def __init__(self, windows: TrainWindows, targets: list[Target]) -> None:
        super().__init__(windows)
        self.labels = np.stack([target.labels for target in targets], axis=-1)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        batch = super().__getitems__(indices)
        starts = np.maximum(indices, 0)[:, None] * self.windows.stride
        places = starts + np.arange(self.windows.window)
        unlabelled = np.array(indices)[:, None, None] < 0  # a padding sample counts for nothing
        batch["block_labels"] = torch.from_numpy(np.where(unlabelled, NONE, self.labels[places]))
        return batch


class GroundedTrainer(MuTrainer):
    """As `MuTrainer`, and teaches the blocks with the weight `grounding` of the settings.

    Raises:
        InputError: a package of word lists is missing.
    """

    def __init__(
        self, model: Any, corpus: Corpus, windows: TrainWindows, settings: RunSettings, *more: Any, **named: Any
    ) -> None:
        targets = block_targets(corpus.train.tokens, corpus.tokenizer)
        sizes = (model.config.vocab_size, model.config.block_size, settings.window)
        readouts = BlockReadouts(targets, corpus.train.tokens, *sizes)
        readouts.lessons = SteeringLessons(targets, corpus.tokenizer, model.config.block_size)
        model.add_module(READOUTS, readouts)
        self.grounded_windows = GroundedWindows(windows, targets)
        self._move: Tensor | None = None
        layers = model.model.layers
        layers[len(layers) // 2].register_forward_pre_hook(self._keep_state)
        super().__init__(model, corpus, windows, settings, *more, **named)
        self._windows = self.grounded_windows

    def _keep_state(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._move is not None:
            return (with_move(inputs[0], self._move), *inputs[1:])
        self._state = inputs[0]
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss, which the running totals count, and with it what teaches the blocks, which they do not."""
        labels = inputs.pop("block_labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        readouts = getattr(self.accelerator.unwrap_model(model), READOUTS)
        state = self._state.float()
        taught = readouts(state, inputs["input_ids"], labels)
        readouts.lessons.note(split_blocks(state.detach()), labels)
        if readouts.lessons.blocks:
            taught = taught + _LESSONS * self._lesson(model, readouts.lessons, inputs["input_ids"])
        loss = loss + self.settings.grounding * taught / self.order.accumulation
        return (loss, outputs) if return_outputs else loss

    def _lesson(self, model: nn.Module, lessons: SteeringLessons, ids: Tensor) -> Tensor:
        """How far what is predicted with a block moved is from what should be, in nats a token."""
        few = ids[: -(-len(ids) // _ONE_WINDOW_OF)]
        number, strength = lessons.turn(self.state.global_step)
        with torch.no_grad():
            usual = model(input_ids=few).logits.float().log_softmax(-1)
        self._move = lessons.move(number, strength)
        try:
            found = model(input_ids=few).logits.float().log_softmax(-1)
        finally:
            self._move = None
        wanted = lessons.wanted(usual, number, strength)
        off = F.kl_div(found, wanted, reduction="sum", log_target=True) / few.numel()
        return off * lessons.known(number)
