"""`transformers.Trainer` for token windows: their order, one-cycle schedule, exact tallies, whole checkpoints."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from mu_sota.common.files import replacing, write_json
from mu_sota.data.corpus import Corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import FIGURES, Score, evaluate
from mu_sota.model.loss import IGNORE_INDEX
from mu_sota.saved.load_save import save_trained
from mu_sota.saved.run_record import BEST_FOLDER
from mu_sota.settings.run import RunSettings

from .batches import WindowDataset, WindowOrder
from .running_totals import RunningTotals

BEST_FILE = "mu_sota_best.pt"
_PROGRESS_FILE = "progress.json"


class MuTrainer(Trainer):
    """One run on one corpus.

    Args:
        model: to train; any model with the loss interface of `MuForCausalLM`.
        tokenizer: saved beside the best model.
        corpus: training and validation split.
        windows: of the training split.
        settings: of the run.
        out: folder of the run.
        micro_batch_size: windows at once in this process.
        precision: fp32, bf16 or fp16.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        corpus: Corpus,
        windows: TrainWindows,
        settings: RunSettings,
        out: Path,
        micro_batch_size: int,
        precision: str,
    ) -> None:
        self.corpus, self.settings, self.out, self.tokenizer = corpus, settings, out, tokenizer
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.order = WindowOrder(len(windows), settings.batch_size, micro_batch_size, settings.seed, rank, world)
        arguments = TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=self.order.accumulation,
            num_train_epochs=settings.num_epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            use_cpu=not torch.accelerator.is_available(),
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            logging_steps=settings.log_steps,
            logging_nan_inf_filter=False,
            save_strategy="no",  # when to evaluate and save is decided in `callbacks.py`
            eval_strategy="no",
            report_to=[tracker for tracker in settings.trackers if tracker != "tensorboard"] or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        if arguments.n_gpu > 1:
            # The library would divide each batch over all visible GPUs in one process (DataParallel), which is slower
            # than a process a GPU, and our batches are divided already.
            arguments._n_gpu = 1
        self._windows = WindowDataset(windows)
        super().__init__(model, arguments, train_dataset=self._windows)
        if "tensorboard" in settings.trackers and self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter

            # Left to the library, every start of a run would log to a folder of its own.
            self.add_callback(TensorBoardCallback(SummaryWriter(str(out / "tensorboard"))))
        self._sums = torch.zeros(3, dtype=torch.float32 if self.args.device.type == "mps" else torch.float64)
        self._sums = self._sums.to(self.args.device)
        self._staging: Path | None = None
        self.logged = RunningTotals()  # what of the epoch's totals the last row of the record has covered
        self.first_loss: float | None = None  # of the first logged steps, to tell an explosion by

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a full epoch."""
        return self.order.steps

    # Data, schedule, loss

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Windows in the order of `WindowOrder`, already this process's share, so `accelerate` must not divide them."""
        return DataLoader(self._windows, batch_sampler=self.order, pin_memory=self.args.dataloader_pin_memory)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """One cycle of the learning rate (Smith and Topin 2017, as in PyTorch): from peak / 25 up, then down to ~0."""
        steps = max(num_training_steps, 4)  # the least that has both phases
        warmup = self.settings.warmup_steps if self.settings.warmup_steps < steps else round(0.3 * steps)
        warmup = max(warmup, 2)
        schedule = OneCycleLR(
            cast(torch.optim.Optimizer, optimizer or self.optimizer),
            max_lr=self.settings.learning_rate,
            total_steps=steps,
            pct_start=warmup / steps,
            cycle_momentum=False,
        )
        self.lr_scheduler = cast(Any, schedule)
        return schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights and tables; not biases, norms and the sensitivity base."""
        return [name for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("bias")]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As in `Trainer`, and the batch is added to the totals."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            tokens = (inputs["shift_labels"] != IGNORE_INDEX).sum()
            # The library multiplies the loss by the number of processes, whose gradients are averaged afterwards.
            nll = loss.detach() * num_items_in_batch / self.accelerator.num_processes
            self._sums += torch.stack([nll.to(self._sums), outputs.num_correct.to(self._sums), tokens.to(self._sums)])
        return (loss, outputs) if return_outputs else loss

    def running_totals(self) -> RunningTotals:
        """Of the current epoch, over all processes. Every process must call it."""
        total = self._sums.clone()
        if self.accelerator.num_processes > 1:
            dist.all_reduce(total)
        return RunningTotals(*total.tolist())

    def reset_running_totals(self) -> None:
        """Start an epoch's totals anew."""
        self._sums.zero_()
        self.logged = RunningTotals()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, the training loss taken from the totals: a resumed run logs what it would have logged.

        What is not finite, as a gradient's norm in fp16 can be, is left out: trackers and `trainer_state.json` hold
        numbers alone.
        """
        if "loss" in logs:
            totals = self.running_totals()
            logs["loss"] = totals.since(self.logged).loss
            self.logged = totals
        finite = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        super().log(finite, start_time)

    # Evaluation

    @property
    def network(self) -> nn.Module:
        """The model, as the library has wrapped it."""
        assert self.model is not None
        return self.model

    def evaluate(self, ignore_keys: None = None) -> dict[str, float]:  # type: ignore[override]
        """Score the validation split with `mu_sota.evaluate`; callbacks get the figures and the `Score`.

        Args:
            ignore_keys: which `Trainer` passes; predictions are not kept.
        """
        self.score: Score = evaluate(
            self.network,
            self.corpus.validation,
            window=self.settings.window,
            stride=self.settings.eval_stride or self.settings.window,
            batch_size=self.args.per_device_train_batch_size,
            progress=lambda batches: tqdm(
                batches, desc="Evaluating", disable=not self.is_world_process_zero(), dynamic_ncols=True
            ),
        )
        metrics = {f"eval_{name}": getattr(self.score, name) for name in (*FIGURES, *vars(self.score))}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.out)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The library writes in place; here it writes beside, and a rename makes the checkpoint appear whole."""
        name = f"checkpoint-{self.state.global_step}"
        totals = self.running_totals()
        self._staging = self.out / f".{name}.tmp"
        try:
            super()._save_checkpoint(model, trial)
        finally:
            staging, self._staging = self._staging, None
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            fresh, target = staging / name, self.out / name
            progress = {"tally": totals, "logged": self.logged, "first_loss": self.first_loss}
            write_json(fresh / _PROGRESS_FILE, progress)
            (fresh / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nobody reads it
            shutil.rmtree(target, ignore_errors=True)
            os.replace(fresh, target)
            shutil.rmtree(staging)
            for other in self.checkpoints():
                if other != target:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def checkpoints(self) -> list[Path]:
        """Our own checkpoints in the run's folder, oldest first."""
        ours = [place.parent for place in self.out.glob(f"checkpoint-*/{_PROGRESS_FILE}")]
        return sorted(ours, key=lambda place: int(place.name.rpartition("-")[2]))

    def continue_from_last_checkpoint(self) -> None:
        """Train from the newest checkpoint in the run's folder, or from the start where there is none."""
        checkpoints = self.checkpoints()
        if not checkpoints:
            self.train()
            return
        checkpoint = checkpoints[-1]
        progress = json.loads((checkpoint / _PROGRESS_FILE).read_text(encoding="utf-8"))
        self.logged, self.first_loss = RunningTotals(*progress["logged"]), progress["first_loss"]
        if self.is_world_process_zero():  # one process carries the sum of all
            self._sums += torch.tensor(progress["tally"], dtype=torch.float64).to(self._sums)
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint))
        else:  # killed between the last checkpoint and the end; the library would train on past the last step
            self.state = state
            self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def save_best(self, epoch: int, score: Score) -> None:
        """Write `best/` and `mu_sota_best.pt`. Every process must call it."""
        weights, optimizer = get_state_dict(
            self.network,
            cast(torch.optim.Optimizer, self.optimizer),
            options=StateDictOptions(full_state_dict=True, cpu_offload=True),
        )
        if not self.is_world_process_zero():
            return
        model = self.accelerator.unwrap_model(self.network)
        with replacing(self.out / BEST_FILE) as temporary:
            content = {
                "model": weights,
                "optimizer": optimizer,
                "config": model.config.to_dict(),
                "epoch": epoch,
                "step": self.state.global_step,
                "validation": score.as_dict(),
            }
            torch.save(content, temporary)
        with replacing(self.out / BEST_FOLDER) as temporary:
            save_trained(model, self.tokenizer, self.settings, temporary, weights)
