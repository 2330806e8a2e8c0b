"""Grounding: while a model learns to predict text, single blocks are also taught what they are named for.

A linear readout of each block, half-way through the layers, predicts that block's targets (`inspection/targets.py`);
its cross-entropy is added to the loss. Readouts are trained with the model and left behind afterwards: what a block has
been taught is measured by probes, on other texts with other labels.

Legend: B batch, T time, D state, N = 16 blocks, S values a block, K targets.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu_sota.data.corpus import Corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.inspection.targets import NONE, Target, block_targets
from mu_sota.model.blocks import BLOCKS, split_blocks
from mu_sota.settings.run import RunSettings

from .batches import WindowDataset
from .trainer import READOUTS, MuTrainer

_PARTS_OF_WINDOW = 16
_START_STD = 0.1


class BlockReadouts(nn.Module):
    """Linear readouts of single blocks.

    Args:
        targets: what is read out, beside the token itself, the one before and the position.
        block_size: S.
        vocab_size: of the tokenizer.
        window: tokens of a training window.
    """

    def __init__(self, targets: list[Target], block_size: int, vocab_size: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.sizes = [(target.block, target.classes) for target in targets]
        self.sizes += [("I", vocab_size), ("C1", vocab_size), ("P", _PARTS_OF_WINDOW)]
        heads = [nn.Linear(block_size, classes) for _, classes in self.sizes]
        for head in heads:
            nn.init.normal_(head.weight, std=_START_STD)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)
        self.shares = [float((target.labels != NONE).mean()) for target in targets] + [1.0, 1.0, 1.0]

    def forward(self, state: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """The mean over blocks of their readouts' cross-entropy, each a share of what guessing at random would cost.

        Args:
            state: [B, T, D].
            ids: [B, T].
            labels: [B, T, K].
        """
        blocks, names = split_blocks(state), [block.name for block in BLOCKS]
        before = F.pad(ids[:, :-1], (1, 0), value=NONE)
        part = torch.arange(ids.shape[1], device=ids.device) * _PARTS_OF_WINDOW // self.window
        every = [*labels.long().unbind(-1), ids, before, part.expand_as(ids)]
        total = state.new_zeros(())
        for (name, classes), head, wanted, share in zip(self.sizes, self.heads, every, self.shares, strict=True):
            found = head(blocks[:, :, names.index(name)])
            nll = F.cross_entropy(found.flatten(0, 1), wanted.flatten(), ignore_index=NONE, reduction="sum")
            several = sum(other == name for other, _ in self.sizes)
            total = total + nll / (share * ids.numel() * np.log(classes) * several)
        return total / len({name for name, _ in self.sizes})


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
        sizes = (model.config.block_size, model.config.vocab_size, settings.window)
        model.add_module(READOUTS, BlockReadouts(targets, *sizes))
        self.grounded_windows = GroundedWindows(windows, targets)
        layers = model.model.layers
        layers[len(layers) // 2].register_forward_pre_hook(self._keep_state)
        super().__init__(model, corpus, windows, settings, *more, **named)
        self._windows = self.grounded_windows

    def _keep_state(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._state = inputs[0]

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
        taught = readouts(self._state.float(), inputs["input_ids"], labels) / self.order.accumulation
        loss = loss + self.settings.grounding * taught
        return (loss, outputs) if return_outputs else loss
