"""`transformers.Trainer` for token windows: our order of windows, schedule, running totals, validation, checkpoints."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from mu_sota.common.bars import seconds_between_drawings
from mu_sota.common.files import as_json
from mu_sota.data.corpus import Corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import FIGURES, Score, evaluate
from mu_sota.model.loss import IGNORE_INDEX
from mu_sota.settings.run import CHANGEABLE, EXTENDABLE, RunSettings

from .batches import WindowDataset, WindowOrder
from .checkpoint import (
    Damaged,
    Progress,
    find_checkpoints,
    publish,
    read_progress,
    require_usable,
    temporary_folder,
)
from .compilation import compile_layers, uncompiled
from .conditions import conditions, what_differs
from .lr_schedule import Part, Schedule
from .running_totals import RunningTotals
from .sharded import is_sharded, make_whole
from .step_watch import StepWatch

READOUTS = "readouts"
"""The attribute of a grounded model that holds what only its training needs; see `grounding.py`."""


class MuTrainer(Trainer):
    """Trains one model on one corpus.

    Args:
        model: to train; any model with the loss interface of `MuForCausalLM`.
        corpus: its validation split is what `evaluate` scores.
        windows: of the training split.
        settings: of the run.
        out: folder of the run.
        micro_batch_size: windows at once in this process.
        precision: fp32, bf16 or fp16.
        parts: of the schedule of learning rates; none for the one that the settings give.

    Attributes:
        identity: what must be the same where a checkpoint is gone on with.
        conditions: under which it trains.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        corpus: Corpus,
        windows: TrainWindows,
        settings: RunSettings,
        out: Path,
        micro_batch_size: int,
        precision: str,
        parts: Sequence[Part] = (),
    ) -> None:
        self.corpus, self.settings, self.out, self.parts = corpus, settings, out, list(parts)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.order = WindowOrder(len(windows), settings.batch_size, micro_batch_size, settings.seed, rank, world)
        self._checkpoint_parent = out
        self.precision, self._compiled = precision, False
        self._windows = WindowDataset(windows)
        arguments = _arguments(settings, out, micro_batch_size, self.order.accumulation, precision)
        super().__init__(model, arguments, train_dataset=self._windows)
        self.remove_callback(PrinterCallback)
        self.tensorboard: Any = None  # its SummaryWriter, where the run has one
        if "tensorboard" in settings.trackers and self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter

            # Left to the library, every start of a run would log to a folder of its own.
            self.tensorboard = SummaryWriter(str(out / "tensorboard"))
            self.add_callback(TensorBoardCallback(self.tensorboard))
        self.watch = StepWatch(self.args.device, settings.bad_steps == "skip", scaled=precision == "fp16")
        self._sums = torch.zeros_like(self.watch.sums)
        self._keep_grad_norm()
        self.identity = _identity(settings, self.network, corpus)
        self.conditions = conditions(world, micro_batch_size, precision, settings.compile)
        self.start_clock()
        self.logged = RunningTotals()  # those that the last row of the record has covered
        self.progress: dict[str, Any] = {}  # what the checkpoint knows of callbacks
        self.more_progress: Callable[[], dict[str, Any]] = dict  # gives what the next one is to know
        self.checkpoint: Path | None = None  # from which it goes on
        self.first_loss: float | None = None  # training loss at the start, to tell an explosion by

    @property
    def network(self) -> nn.Module:
        """The model, as the library has wrapped it."""
        assert self.model is not None
        return self.model

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a full epoch."""
        return self.order.steps

    # Data, schedule, loss

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Windows in the order of `WindowOrder`, already this process's share, so `accelerate` must not divide them."""
        on_device: Any = self._on_device  # gets a micro-batch, not a list of windows
        return DataLoader(self._windows, batch_sampler=self.order, collate_fn=on_device)

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch where it is needed, without waiting for what a GPU still has to do.

        `Trainer` looks for labels, and counts and passes on shift_labels, which need no shift any more.
        """
        if self.args.device.type == "cuda":
            batch = {name: part.pin_memory().to(self.args.device, non_blocking=True) for name, part in batch.items()}
        return {**batch, "shift_labels": batch["labels"]}

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The schedule of `lr_schedule.py`."""
        optimizer = cast(torch.optim.Optimizer, optimizer or self.optimizer)
        parts = self.parts or [Part(num_training_steps, self.settings.schedule)]
        schedule = Schedule(optimizer, self.settings.learning_rate, self.settings.warmup_steps, parts)
        self.lr_scheduler = cast(Any, schedule)
        return schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights and tables; not biases, norms and the sensitivity base."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and not name.endswith("bias") and READOUTS not in name
        ]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As in `Trainer`, and the batch is added to the sums of the step."""
        smaller = len(inputs["input_ids"]) != self.order.micro_batch_size
        with self.uncompiled() if smaller else nullcontext():
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            tokens = (inputs["shift_labels"] != IGNORE_INDEX).sum()
            # The library multiplies the loss by the number of processes, whose gradients are averaged afterwards.
            nll = loss.detach() * num_items_in_batch / self.accelerator.num_processes
            self.watch.sums += torch.stack([sum_.to(self._sums) for sum_ in (nll, outputs.num_correct, tokens)])
        self.watch.batches.append(dict(inputs))
        return (loss, outputs) if return_outputs else loss

    # Compiled layers

    def compile_layers(self) -> str:
        """Compile the layers for full micro-batches of training; why that failed, or nothing."""
        problem = compile_layers(self.model, self.order.micro_batch_size, self.settings.window, self.precision)
        self._compiled = not problem
        return problem

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Within it, no layer is compiled for another shape or for evaluation."""
        return uncompiled() if self._compiled else nullcontext()

    # Steps that are not as usual

    def _keep_grad_norm(self) -> None:
        """Remember what clipping computes anyway."""
        clip = self.accelerator.clip_grad_norm_

        def clip_and_keep(*arguments: Any, **named: Any) -> Any:
            self._grad_norm = clip(*arguments, **named)
            return self._grad_norm

        cast(Any, self.accelerator).clip_grad_norm_ = clip_and_keep

    def judge_step(self) -> None:
        """Before the optimizer's step: leave the weights as they are if it is bad, else count it in the totals."""
        sums = self.watch.sums
        if self.accelerator.num_processes > 1:
            dist.all_reduce(everywhere := sums.clone())
        else:
            everywhere = sums
        norm = self._grad_norm
        norm = getattr(norm, "full_tensor", lambda: norm)()  # of a sharded model
        bad = self.watch.judge(self.state.global_step + 1, everywhere, norm)
        self._sums += torch.where(bad, 0, sums)
        if self.precision != "fp16" and not self.is_fsdp_enabled:
            # As a gradient scaler does: a fused optimizer then does nothing, decided on the device.
            cast(Any, self.optimizer).optimizer.found_inf = bad.float()

    # Running totals

    def running_totals(self) -> RunningTotals:
        """Of the current epoch, over all processes. Every process must call it."""
        total = self._sums.clone()
        if self.accelerator.num_processes > 1:
            dist.all_reduce(total)
        return RunningTotals(*total.tolist())

    def reset_running_totals(self) -> None:
        """Begin the totals of a new epoch."""
        self._sums.zero_()
        self.logged = RunningTotals()

    def start_clock(self) -> None:
        """Time steps from here on, for the tokens a second of the next log."""
        self._clock, self._clocked_step = time.monotonic(), self.state.global_step

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """What happens within it is no training."""
        start = time.monotonic()
        yield
        self._clock += time.monotonic() - start

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, with the training loss of the running totals: a resumed run logs what it would have logged.

        What is not finite, as a gradient's norm in fp16 can be, is left out: trackers and `trainer_state.json` hold
        numbers alone.
        """
        if "loss" in logs:
            totals, now = self.running_totals(), time.monotonic()
            tokens = (self.state.global_step - self._clocked_step) * self.settings.batch_size * self.settings.window
            logs |= {"loss": totals.since(self.logged).loss, "tokens_per_second": tokens / (now - self._clock)}
            self.logged = totals
            self.start_clock()
        finite = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        super().log(finite, start_time)

    # Validation

    def validate(self, progress: Callable[[list[range]], Iterable[range]] = iter) -> Score:
        """Score the model as it is on the validation split. Every process must call it.

        Args:
            progress: as in `mu_sota.evaluation.metrics.evaluate`.
        """
        with self.uncompiled():
            return evaluate(
                self.network,
                self.corpus.validation,
                window=self.settings.window,
                stride=self.settings.eval_stride or self.settings.window,
                batch_size=self.args.per_device_train_batch_size,
                progress=progress,
            )

    def evaluate(self, ignore_keys: None = None) -> dict[str, float]:  # type: ignore[override]
        """Validate; callbacks get the figures and the `Score`.

        Args:
            ignore_keys: which `Trainer` passes; no predictions are returned.
        """
        with self._clock_stopped():
            self.score = self.validate(
                lambda batches: tqdm(
                    batches,
                    desc="Evaluating",
                    disable=not self.is_world_process_zero(),
                    mininterval=seconds_between_drawings(),
                    dynamic_ncols=True,
                )
            )
            metrics = {f"eval_{name}": getattr(self.score, name) for name in (*FIGURES, *vars(self.score))}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_parent)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in `Trainer`, but in a temporary folder, from which `checkpoint.py` makes it appear complete."""
        step, totals = self.state.global_step, self.running_totals()
        with self._clock_stopped():
            self._checkpoint_parent = temporary_folder(self.out, step)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._checkpoint_parent = self.out
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                usual = (self.watch.usual.item(), self.watch.seen)
                progress = Progress(totals, self.logged, self.first_loss, usual, self.more_progress())
                publish(self.out, step, progress, {"identity": self.identity, "conditions": self.conditions})
            self.accelerator.wait_for_everyone()

    def train_from_last_checkpoint(self, steps: int) -> None:
        """Train from the newest usable checkpoint in the run's folder, or from the start where there is none.

        Args:
            steps: of the whole run.

        Raises:
            InputError: a checkpoint there belongs to another run.
        """
        checkpoint = self.checkpoint = self._last_usable(steps)
        if checkpoint is None:
            self.train()
            return
        progress = read_progress(checkpoint)
        self.logged, self.first_loss, self.progress = progress.logged, progress.first_loss, progress.more
        if progress.usual is not None:
            self.watch.usual.fill_(progress.usual[0])
            self.watch.seen = progress.usual[1]
        if self.is_world_process_zero():  # one process carries the sum of all
            self._sums += torch.tensor(progress.tally, dtype=torch.float64).to(self._sums)
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < steps and progress.more.get("ended_early") != steps:
            if not is_sharded(checkpoint) or self.is_fsdp_enabled:
                self.train(resume_from_checkpoint=str(checkpoint))
                return
            whole = temporary_folder(self.out, state.global_step)
            with self.accelerator.main_process_first():
                if self.is_world_process_zero():
                    make_whole(checkpoint, cast(Any, self.model), self.create_optimizer(), whole)
            self.train(resume_from_checkpoint=str(whole))
        else:  # killed between the last checkpoint and the end; the library would train on past the last step
            self.state = state
            self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def _last_usable(self, steps: int) -> Path | None:
        """The newest checkpoint that can be gone on with; what is wrong with newer ones is said."""
        checkpoints = find_checkpoints(self.out)
        for number, checkpoint in reversed(list(enumerate(checkpoints))):
            try:
                then = require_usable(checkpoint, self.identity, steps)
            except Damaged as damage:
                before = checkpoints[number - 1].name if number else "the start of the run"
                self.say(f"{checkpoint} cannot be used ({damage}): going on from {before}.")
                continue
            dropout = getattr(self.network.config, "dropout", 0)
            if differs := what_differs(then, self.conditions, float(cast(Any, dropout))):
                self.say(differs)
            return checkpoint
        return None

    def say(self, text: str) -> None:
        """Print, in the main process."""
        if self.is_world_process_zero():
            tqdm.write(text)


def _identity(settings: RunSettings, model: nn.Module, corpus: Corpus) -> dict[str, Any]:
    """Plain data, flat."""
    config: Any = model.config
    model_values = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    values = settings.model_dump(exclude={*CHANGEABLE, *EXTENDABLE})
    return dict(json.loads(as_json({**model_values, **values, "data_fingerprint": corpus.fingerprint})))


_NOT_OF_THE_MODEL = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "auto_map"}


def _arguments(
    settings: RunSettings, out: Path, micro_batch_size: int, accumulation: int, precision: str
) -> TrainingArguments:
    """The settings of a run as `Trainer` takes them; callbacks decide when to evaluate and save."""
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
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
        save_strategy="no",
        eval_strategy="no",
        report_to=[tracker for tracker in settings.trackers if tracker != "tensorboard"] or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        optim="adamw_torch_fused",
    )
    if arguments.n_gpu > 1:
        # The library would divide each batch over all visible GPUs in one process (DataParallel), which is slower
        # than a process a GPU, and our batches are divided already.
        arguments._n_gpu = 1
    return arguments
