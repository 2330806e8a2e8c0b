"""One training run, from settings to the judgement on it; `train` shows its parts in their order."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState

from mu_sota.common import environment
from mu_sota.common.files import checksum, write_json
from mu_sota.common.locks import alone
from mu_sota.common.memory import halve_until_it_fits
from mu_sota.common.text import as_word, readable, timestamp
from mu_sota.data.corpus import load_corpus
from mu_sota.data.options import TextOptions
from mu_sota.data.tokenizer import TOKENIZER_FILE, save_tokenizer
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.ngram import unigram
from mu_sota.leakcheck.report import Report
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.saved.run_record import (
    BEST_FILE,
    BEST_FOLDER,
    LOCK_FILE,
    METRICS_FILE,
    RUN_FILE,
    loss_of,
    model_folder,
    refuse_existing_run,
)
from mu_sota.settings.load import Settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import CHANGEABLE, EXTENDABLE

from .before_training import (
    build_causal_model,
    check_init_from,
    check_labels,
    check_prompts,
    check_trackers,
    choose_precision,
    default_micro_batch,
    fitted_to_tokenizer,
    new_model,
    planned_parts,
    previous_run,
    remove_leftovers,
)
from .best_model import best_loads
from .block_callback import BlockCallback
from .callbacks import RunCallback
from .checkpoint import find_checkpoints, remove_checkpoints
from .heading import heading
from .interrupt import Interrupt, Interrupted
from .lr_schedule import Part
from .metrics_file import MetricsFile
from .run_checks import RunCheck, judge_run, verdict_text
from .trainer import MuTrainer


class Beginning(NamedTuple):
    """Where a new run begins, if not as every other.

    Attributes:
        init_from: folder of the model whose weights it begins with.
        schedule: the parts of the schedule of a run that it repeats, as that one's record has them.
        fingerprint: of the text and tokens that it must have.
    """

    init_from: Path | None = None
    schedule: tuple[dict[str, Any], ...] = ()
    fingerprint: str | None = None


FROM_NOTHING = Beginning()


def train(
    preset: str,
    data: str,
    out: Path,
    settings: Settings,
    resume: bool = False,
    beginning: Beginning = FROM_NOTHING,
) -> list[RunCheck]:
    """Train a model and leave its files in `out`: see `docs/run-instructions.md`.

    Args:
        preset: name of the preset that the settings began with.
        data: as in `load_corpus`.
        out: folder of the run.
        settings: of the model and the run.
        resume: go on with the run in `out`, if there is one; with more steps than it had, also if it is finished.
        beginning: of a new run.

    Returns:
        The checks of the finished run, which have been printed too.

    Raises:
        InputError: unusable settings or data, a run that is there already, another process at work on it, a diverged
            loss, too little memory.
        LeakError: the model sees the token that it is asked to predict.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    with ExitStack() as held:
        run = _Run(preset, data, out, settings, beginning, held)
        run.find_previous(resume)
        if "result" in run.record:
            return run.show_result()
        run.check()
        run.write_start()
        run.say(run.heading())
        return run.judge(run.fit())


class _Run:
    """The parts of one call of `train`, which calls them in this order."""

    def __init__(
        self, preset: str, data: str, out: Path, settings: Settings, beginning: Beginning, held: ExitStack
    ) -> None:
        self.preset, self.data, self.out, self.held = preset, data, out, held
        self.beginning, self.init_from, self.locked = beginning, beginning.init_from, False
        self.settings, self.requested_model = settings
        # Without `cpu`, it overlooks the other processes on a CPU.
        self.process = PartialState(cpu=not torch.accelerator.is_available())
        with self.process.main_process_first():
            self.corpus = load_corpus(
                data,
                tokenizer=self.settings.tokenizer,
                vocab_size=self.requested_model.vocab_size,
                options=TextOptions.of(self.settings.model_dump()),
            )
        self.windows = TrainWindows(self.corpus.train.tokens, self.settings.window, self.settings.stride)
        self.config = fitted_to_tokenizer(self.requested_model, self.corpus)
        self.identity = {
            "preset": preset,
            "settings": self.settings.model_dump(exclude={*CHANGEABLE, *EXTENDABLE}),
            "model": {key: getattr(self.config, key) for key in MODEL_KEYS},
        }
        self.metrics = MetricsFile(out / METRICS_FILE, self.process.is_main_process)

    def say(self, text: str) -> None:
        """Print in the main process; the others are silent."""
        if self.process.is_main_process:
            print(text)

    def lock(self) -> None:
        """Keep other processes out of the folder, once there is one."""
        if self.locked or not self.process.is_main_process or not self.out.is_dir():
            return

        def refuse(holder: str) -> None:
            raise InputError(f"{self.out} is at work ({holder}); wait for it to end, or give another --out")

        self.held.enter_context(alone(self.out / LOCK_FILE, refuse))
        self.locked = True

    def find_previous(self, resume: bool) -> None:
        """Read the record of the run in the folder, if there is one to resume, and plan the steps."""
        self.lock()
        per_epoch = -(-len(self.windows) // self.settings.batch_size)
        self.record = previous_run(self.out, self.data, self.corpus, self.identity, resume, per_epoch)
        self.begun_before = bool(self.record)
        if resume and not self.record:
            self.say(f"There is no run in {self.out} yet, so this is a new one.\n")
        if self.record:
            begun = self.record.get("init_from")
            self.init_from = Path(begun["folder"]) if begun else None
            if begun and not find_checkpoints(self.out) and _weights_of(Path(begun["folder"])) != begun["weights"]:
                raise InputError(
                    f"the run in {self.out} began with the model in {begun['folder']}, which is another now, and "
                    f"there is no checkpoint yet; begin again in another --out"
                )
        elif self.beginning.fingerprint not in (None, self.corpus.fingerprint):
            raise InputError(
                f"{self.data!r} now gives other text or tokens than the run that is to be repeated had; give its text, "
                f"or say with --data that another is meant"
            )
        steps = self.settings.max_steps or self.settings.num_epochs * per_epoch
        self.parts = planned_parts(self.out, self.record, self.beginning.schedule, Part(steps, self.settings.schedule))
        if self.record and steps > _steps_so_far(self.record):
            before = _steps_so_far(self.record)
            self.say(f"The run is made longer: {steps:,} steps, not {before:,}; a {self.parts[-1].shape} for the rest.")
            if result := self.record.pop("result", None):
                self.record["earlier_results"] = [*self.record.get("earlier_results", []), result]

    def show_result(self) -> list[RunCheck]:
        """Print the result of a run that is finished."""
        result = self.record["result"]
        self.say(f"The run in {self.out} is finished. For another one, give another --out.\n{result['text']}")
        written = result.get("metrics_checksum")
        if written and (not self.metrics.path.exists() or checksum(self.metrics.path) != written):
            self.say(f"  {self.metrics.path} is other than when the run ended: do not trust its rows.")
        return [RunCheck(*check) for check in result["checks"]]

    def check(self) -> None:
        """Find whatever would make the run fail or its numbers worthless, before anything is written."""
        self.precision = choose_precision(self.settings.precision)
        check_trackers(self.settings.trackers)
        check_prompts(self.settings, self.corpus.tokenizer, self.config)
        check_labels(self.settings)
        self.unigram = unigram(self.corpus.train, self.corpus.validation, self.config.vocab_size)
        # The model that the leak check has passed is the one that is trained; see `_next_model`.
        self.model: MuForCausalLM | None
        self.causality: Report
        if self.init_from is not None:
            check_init_from(self.init_from, self.corpus.tokenizer)
        config, seed, device = self.config, self.settings.seed, self.process.device
        self.model, self.causality = build_causal_model(config, seed, device, self.init_from)
        self.process.wait_for_everyone()

    def write_start(self) -> None:
        """Write what is known of the run before it trains."""
        if not self.process.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.locked:  # the folder is new: another process may have had the same idea
            self.lock()
            refuse_existing_run(self.out)
        remove_leftovers(self.out)
        save_tokenizer(self.corpus.tokenizer, self.out / TOKENIZER_FILE)
        here = environment.describe()
        new = self.identity | {
            "data": self.data,
            "data_fingerprint": self.corpus.fingerprint,
            "text": self.corpus.about,
            "machine": here,
            "precision": self.precision,
        }
        self.record = new | self.record
        other = {key: value for key, value in here.items() if value != self.record["machine"].get(key)}
        start = {"time": timestamp()} | ({"machine": other} if other else {})
        self.record["starts"] = [*self.record.get("starts", []), start]
        self.record["schedule"] = [part._asdict() for part in self.parts]
        if self.init_from is not None and "init_from" not in self.record:
            folder = self.init_from.resolve()
            self.record["init_from"] = {"folder": str(folder), "weights": _weights_of(folder)}
        self.record["unigram"] = self.unigram.as_dict()
        self.record["causality"] = self.causality.as_dict()
        self.record["settings"] = self.settings.model_dump()
        # The model as it was asked for: `model` holds the vocabulary that the text gave.
        model = {key: getattr(self.requested_model, key) for key in MODEL_KEYS}
        self.record["requested"] = self.record["settings"] | model
        write_json(self.out / RUN_FILE, self.record)

    def heading(self) -> str:
        """The model, the data, the result of the leak check and the perplexity to beat."""
        return (
            f"{heading(self.preset, self.config, self.corpus, self.settings, self.precision, self.process)}\n"
            f"Causality: {self.causality.summary()}\n"
            f"Unigram model on the same validation tokens: "
            f"PPL={readable(self.unigram.perplexity)}, bits/byte={self.unigram.bits_per_byte:.4f}\n"
        )

    def fit(self) -> MuTrainer:
        """Train to the last step, with as many sequences at once as the memory holds."""
        processes = self.process.num_processes
        micro_batch_size = self.settings.micro_batch_size or default_micro_batch(self.settings, processes)
        interrupt = Interrupt()
        self.started = time.monotonic()

        def attempt(micro_batch_size: int) -> MuTrainer:
            trainer = self._trainer_class()(
                self._next_model(),
                self.corpus,
                self.windows,
                self.settings,
                self.out,
                micro_batch_size,
                self.precision,
                self.parts,
            )
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            for name in ("grounding", "labels"):
                if sharded and getattr(self.settings, name):
                    raise InputError(f"the setting {name} needs whole weights in every process: train without sharding")
            if self.settings.compile == "always" and (problem := trainer.compile_layers()):
                self.say(f"The layers run uncompiled, since they cannot be compiled here: {problem}")
            callback = RunCallback(trainer, interrupt, self.metrics)
            trainer.add_callback(callback)
            trainer.add_callback(BlockCallback(trainer, Path(self.settings.labels) if self.settings.labels else None))
            if self.begun_before and not find_checkpoints(self.out):
                self.say("There is no checkpoint yet, so the run begins at its start.")
            trainer.train_from_last_checkpoint(self.parts[-1].end)
            self.ended_early = callback.ended_early
            return trainer

        def tell(smaller: int) -> None:
            if processes > 1:  # the others are waiting for a process that will not come
                raise InputError(
                    f"out of memory: lower the sequences at once with --set micro_batch_size={smaller}: the same "
                    f"batches, in more parts"
                )
            self.say(f"Out of memory: going on with {smaller} at once, the same batches in parts.")

        with interrupt.listening():
            trainer = halve_until_it_fits(attempt, micro_batch_size, tell)
        if trainer.state.global_step < trainer.state.max_steps and not self.ended_early:
            raise Interrupted(f"saved at step {trainer.state.global_step:,} of {trainer.state.max_steps:,}")
        return trainer

    def _trainer_class(self) -> type[MuTrainer]:
        if not self.settings.grounding:
            return MuTrainer
        from .grounding import GroundedTrainer  # which needs more packages

        return GroundedTrainer

    def _next_model(self) -> MuForCausalLM:
        """The checked model, then, after an out-of-memory error, a new one of the same weights.

        It is not kept here: the memory of a failed attempt must become free.
        """
        model, self.model = self.model, None
        if model is None:
            model = new_model(self.config, self.settings.seed, self.init_from)
        return model

    def judge(self, trainer: MuTrainer) -> list[RunCheck]:
        """Check the finished run, print the judgement, and complete the record."""
        loads = self.process.is_main_process and best_loads(self.out)
        steps, unigram = trainer.state.max_steps, self.unigram.perplexity
        checks = judge_run(self.metrics.epochs, steps, loads, unigram, self.ended_early)
        best = min(self.metrics.validations, key=lambda row: loss_of(row["validation"]))
        text = (
            f"{verdict_text(checks, best, self.unigram)}\n"
            f"  Files in {self.out}: {BEST_FILE}, {BEST_FOLDER}/, {TOKENIZER_FILE}, {METRICS_FILE}, {RUN_FILE}\n"
            f"  Next: mu-sota generate {as_word(self.out)} --prompt 'Once upon a time'"
        )
        self.say(text)
        if self.process.is_main_process:
            self.record["result"] = {
                "finished": timestamp(),
                "seconds_of_last_start": round(time.monotonic() - self.started, 1),
                "peak_memory_bytes": environment.peak_memory(),
                "best": best,
                "checks": checks,
                "text": text,
                "metrics_checksum": checksum(self.metrics.path),
            }
            write_json(self.out / RUN_FILE, self.record)
            remove_checkpoints(self.out, find_checkpoints(self.out)[-1:])  # the last, to make the run longer
        self.process.wait_for_everyone()  # torchrun ends all processes where one ends before the others
        return checks


def _steps_so_far(record: dict[str, Any]) -> int:
    """Those of a run before it is made longer."""
    return int(record["schedule"][-1]["end"])


def _weights_of(folder: Path) -> str | None:
    """The checksum of a trained model's weights; None where they lie in several files."""
    file = model_folder(folder) / "model.safetensors"
    return checksum(file) if file.exists() else None
