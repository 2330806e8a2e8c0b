"""What the blocks do while a model is trained: their sensitivities and, with labelled texts, their legibility.

Scalars go to every tracker of a run, pictures to TensorBoard.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mu_sota.data.windows import EvalWindows
from mu_sota.model.blocks import BLOCKS

from .trainer import MuTrainer

_WINDOWS = 8  # of the validation split, from all over it: enough for means


class BlockCallback(TrainerCallback):
    """Logs, after every evaluation, what `MuModel` tells of its blocks.

    Args:
        trainer: of the run, of a MU model.
        labels: folder of labelled texts, as `mu-sota inspect --labels` takes it; None for sensitivities alone.

    Raises:
        InputError: the folder holds no labelled texts.
    """

    def __init__(self, trainer: MuTrainer, labels: Path | None) -> None:
        self.trainer, self.probed = trainer, None
        if labels is not None and trainer.is_world_process_zero():
            from mu_sota.inspection.record import labelled_folder, tasks_of

            self.probed = (labelled_folder(labels), tasks_of(trainer.corpus))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure and log."""
        if not (self.trainer.is_world_process_zero() or self.trainer.is_fsdp_enabled):
            return  # of a sharded model, every process must take part in a forward pass
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.network)
        was_training = model.training
        model.eval()
        with self.trainer.uncompiled():
            self._sensitivities(model, state.global_step)
            if self.probed is not None:
                self._legibility(model, state.global_step)
        model.train(was_training)

    @torch.no_grad()
    def _sensitivities(self, model: Any, step: int) -> None:
        window = self.trainer.settings.window
        windows = EvalWindows(self.trainer.corpus.validation.tokens, window, stride=window)
        chosen = range(0, len(windows), -(-len(windows) // _WINDOWS))
        ids = torch.stack([windows[number]["input_ids"] for number in chosen]).to(model.device)
        layers = model(ids, output_sensitivities=True, logits_to_keep=1).sensitivities
        means = torch.stack([layer.float().mean((0, 1)) for layer in layers]).cpu()  # [L, N]
        by_block = means.mean(0).tolist()
        names = [block.name for block in BLOCKS]
        self.trainer.log({f"eval_sensitivity_{name}": value for name, value in zip(names, by_block, strict=True)})
        self._picture("sensitivities", step, lambda figures: figures.sensitivities(means.numpy()))

    def _legibility(self, model: Any, step: int) -> None:
        from mu_sota.inspection.record import asked

        assert self.probed is not None
        labelled, tasks = self.probed
        place, window = model.config.num_hidden_layers // 2, self.trainer.settings.window
        _, legibility = asked(
            model, self.trainer.corpus.tokenizer, labelled, tasks, window, place, lambda _, todo: todo
        )
        found = legibility.as_dict()
        ranks = {f"eval_own_rank_{name}": rank for name, rank in found["rank_at_own_task"].items() if rank}
        self.trainer.log({"eval_legibility": found["legibility"], **ranks})
        blocks = [block._asdict() for block in BLOCKS]
        self._picture("legibility", step, lambda figures: figures.legibility({"blocks": blocks, "legibility": found}))

    def _picture(self, name: str, step: int, draw: Any) -> None:
        if self.trainer.tensorboard is None:
            return
        from mu_sota.inspection import figures

        self.trainer.tensorboard.add_figure(name, draw(figures).figure, step)
