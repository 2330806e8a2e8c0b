"""MU beside standard Transformers: tune all alike, train all on the same batches, score the test split once, record."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from mu_sota.common import environment
from mu_sota.common.environment import default_device, release_memory
from mu_sota.common.files import write_json
from mu_sota.common.memory import smaller_micro_batch
from mu_sota.common.text import duration, timestamp
from mu_sota.evaluation.metrics import evaluate
from mu_sota.generation.continuation import sample
from mu_sota.leakcheck.checks import assert_causal
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import BEST_FOLDER
from mu_sota.settings.load import Settings
from mu_sota.training.interrupt import Interrupt, Interrupted

from . import report
from .baselines import build, load
from .contenders import Contender
from .folder import (
    RECORD_FILE,
    REFERENCES_FILE,
    SCORES_FILE,
    TRAINING_FILE,
    ComparisonFolder,
    refuse_existing_comparison,
)
from .hyperparameter_search import Trial, first_trials, successive_halving
from .inputs import Inputs, load_inputs
from .plan import Plan, describe, plan_comparison
from .progress import ProgressBar
from .record import Results, make_record
from .references import count_references
from .request import Request
from .single_training import CURVE_POINTS, TrainingSetup, beginning, finish, train_once

_TUNING_SEED = 1_000_000  # that of no final run


def describe_comparison(request: Request, settings: Settings, begun_in: Path | None = None) -> str:
    """The plan of a comparison as text: a new one, or that of the comparison begun in a folder.

    Raises:
        InputError: unusable data, settings that do not fit it, or another comparison in the folder.
    """
    inputs, device = load_inputs(request, settings), default_device()
    begun = ComparisonFolder(begun_in, inputs.identity(), resume=True).start if begun_in else {}
    plan = Plan.from_dict(begun["plan"]) if begun else plan_comparison(inputs, device)
    return describe(plan, inputs, device)


def run_comparison(request: Request, settings: Settings, out: Path, resume: bool) -> dict[str, Any]:
    """Run a comparison, or what is left of it, and leave record and report in `out`.

    Returns:
        The record, as `comparison.json` has it.

    Raises:
        InputError: unusable data, settings that do not fit it, another comparison in `out` or another process at work
            there, or a model that is not causal.
        Interrupted: Ctrl-C or SIGTERM while models are trained or evaluated; it can be resumed.
    """
    inputs, device = load_inputs(request, settings), default_device()
    folder = ComparisonFolder(out, inputs.identity(), resume)
    with ExitStack() as held:
        there_already = out.is_dir()
        if there_already:
            held.enter_context(folder.locked())
        start = folder.start
        plan = Plan.from_dict(start["plan"]) if start else plan_comparison(inputs, device)
        print(describe(plan, inputs, device) + "\n", flush=True)
        if not start:
            start = inputs.identity() | {
                "plan": plan.as_dict(),
                "leak_checks": {one.name: _leak_check(one, device) for one in plan.contenders if not one.control_of},
                "machines": [],
                "started": timestamp(),
            }
        if not there_already:  # nor may it be by now
            held.enter_context(folder.locked())
            refuse_existing_comparison(out)
        here = environment.describe()
        folder.begin(start | {"machines": start["machines"] + [here] * (here not in start["machines"])})
        interrupt = Interrupt()
        with interrupt.listening():
            record = Comparison(inputs, plan, folder, device, interrupt).run()
            write_json(folder.path / RECORD_FILE, record)
            report.write(record, folder.path)
    return record


def _leak_check(contender: Contender, device: torch.device) -> dict[str, Any]:
    """Check the untrained model, as recorded.

    Raises:
        LeakError: it sees what it is to predict.
    """
    set_seed(0)
    model = torch.nn.Module.to(build(contender.config, dropout=0.1), device)
    found = assert_causal(model)
    print(f"{contender.title}: {found.summary()}", flush=True)
    return {**found.as_dict(), "text": found.summary()}


class Comparison:
    """Does the training runs and evaluations of a plan, each once: those whose file is in the folder are read from it.

    Args:
        inputs: settings and text.
        plan: what to do.
        folder: with the plan's `plan.json`.
        device: to evaluate on.
        interrupt: Ctrl-C.
    """

    def __init__(
        self, inputs: Inputs, plan: Plan, folder: ComparisonFolder, device: torch.device, interrupt: Interrupt
    ) -> None:
        self.inputs, self.plan, self.folder, self.device, self.interrupt = inputs, plan, folder, device, interrupt
        self.bar = ProgressBar(plan.seconds)
        self.setup = TrainingSetup(
            replace(inputs.corpus, validation=beginning(inputs.corpus.validation, plan.curve_tokens)),
            inputs.windows,
            inputs.run,
            inputs.run.micro_batch_size or plan.micro_batch_size,
            plan.precision,
            interrupt,
            self.bar.tick,
        )
        self.trainings = 0  # begun or found finished

    def run(self) -> dict[str, Any]:
        """Do all that is left.

        Returns:
            The record.
        """
        plan = self.plan
        try:
            chosen = {one.name: self.tune(one) for one in plan.contenders if one.control_of is None}
            trials = {one.name: _final_trial(one, chosen) for one in plan.contenders}
            for number in range(plan.seeds):  # seed by seed: should the machine slow down, all contenders meet it
                for one in plan.contenders:
                    seed, points = plan.seeds_of(one)[number], CURVE_POINTS
                    self._train(one, trials[one.name], seed, plan.steps, points, _final_run(seed), f"seed {seed}")
            scores = {(one.name, seed): self.score(one, seed) for one in plan.contenders for seed in plan.seeds_of(one)}
            references = self.references()
            results = {
                one.name: Results(
                    trials[one.name],
                    self.tuning_record(one),
                    [self._finished(one, _final_run(seed)) | scores[one.name, seed] for seed in plan.seeds_of(one)],
                    _samples(self._best_model(one, plan.seeds_of(one)[0]), self.inputs),
                )
                for one in plan.contenders
            }
        finally:
            self.bar.close()
        return make_record(self.inputs, plan, self.folder, results, references)

    def tune(self, contender: Contender) -> Trial:
        """The best hyperparameters on the validation split, by successive halving, or what was chosen earlier."""
        if self.plan.earlier:
            return self.plan.earlier.trials[contender.name]
        rungs = self.plan.rungs

        def train(level: int, number: int, trial: Trial) -> float | None:
            name = f"setting {number + 1} of {rungs[level].trials}, {rungs[level].steps} steps"
            steps, run = rungs[level].steps, _tuning_run(level, number)
            record = self._train(contender, trial, _TUNING_SEED, steps, points=1, run=run, name=name)
            return None if record["diverged"] else float(record["loss"])

        try:
            return successive_halving(first_trials(self.inputs.request.trials), rungs, train)
        except InputError as error:
            raise InputError(f"{contender.title}: {error}") from None

    def _train(
        self, contender: Contender, trial: Trial, seed: int, steps: int, points: int, run: str, name: str
    ) -> dict[str, Any]:
        """Train as `train_once` does, in the folder of this run; `name` is for people."""
        folder = self.folder.training(contender.name, run)
        seconds = self.plan.training_seconds(contender, steps, points)
        self.trainings += 1
        if record := self._finished(contender, run):
            finish(folder)
            self.bar.skip(seconds)
            return record
        self._stop_if_interrupted()
        name = f"{self.trainings} of {self.plan.trainings}: {contender.title}, {name}"
        self.bar.begin(name, steps, seconds)
        try:
            trained = train_once(self.setup, contender.config, trial, seed, steps, points, folder)
        except (RuntimeError, MemoryError) as error:
            less = smaller_micro_batch(error, self.setup.micro_batch_size)
            raise InputError(
                f"out of memory while {contender.title} was trained; go on with --resume --set "
                f"micro_batch_size={less}: the same batches, in more parts"
            ) from error
        finally:
            release_memory()
        record = {"seed": seed, **trial._asdict(), "steps": steps, **trained}
        self.folder.write(folder / TRAINING_FILE, record)
        finish(folder)
        self.bar.end()
        tqdm.write(f"{name}: {_as_text(record, trial)}")
        return record

    def _finished(self, contender: Contender, run: str) -> dict[str, Any]:
        """The record of a finished training run, or nothing."""
        return self.folder.read(self.folder.training(contender.name, run) / TRAINING_FILE)

    def tuning_record(self, contender: Contender) -> list[dict[str, Any]]:
        """The trials of every rung; a control has none."""
        if contender.control_of:
            return []
        return [
            {
                "steps": rung.steps,
                # Fewer than planned where some of the rung before diverged.
                "trials": [
                    trial
                    for number in range(rung.trials)
                    if (trial := self._finished(contender, _tuning_run(level, number)))
                ],
            }
            for level, rung in enumerate(self.plan.rungs)
        ]

    def score(self, contender: Contender, seed: int) -> dict[str, Any]:
        """Scores of the best weights on all of validation and test split. All training runs are over by now."""
        file = self.folder.training(contender.name, _final_run(seed)) / SCORES_FILE
        seconds = self.plan.evaluation_seconds(contender, self.plan.final_tokens)
        if scores := self.folder.read(file):
            self.bar.skip(seconds)
            return scores
        self._stop_if_interrupted()
        self.bar.begin(f"{contender.title}, seed {seed}: validation and test split", 1, seconds)
        scores = _scores(self._best_model(contender, seed), self.inputs, self.plan.micro_batch_size)
        self.folder.write(file, scores)
        self.bar.end()
        return scores

    def references(self) -> list[dict[str, Any]]:
        """The models that need no gradient."""
        self._stop_if_interrupted()
        file = self.folder.path / REFERENCES_FILE
        if not (references := self.folder.read(file)):
            references = count_references(self.inputs, self.plan.steps * self.plan.batch_tokens)
            self.folder.write(file, references)
        return [{"name": name} | reference for name, reference in references.items()]

    def _best_model(self, contender: Contender, seed: int) -> PreTrainedModel:
        model = load(self.folder.training(contender.name, _final_run(seed)) / BEST_FOLDER)
        torch.nn.Module.to(model, self.device)
        return model

    def _stop_if_interrupted(self) -> None:
        if self.interrupt.received:
            raise Interrupted("all that is finished is kept")


def _scores(model: PreTrainedModel, inputs: Inputs, batch_size: int) -> dict[str, Any]:
    """Of validation and test split, all of them."""
    run = inputs.run
    return {
        name: evaluate(
            model,
            getattr(inputs.corpus, name),
            window=run.window,
            stride=run.eval_stride or run.window,
            batch_size=batch_size,
        ).as_dict()
        for name in ("validation", "test")
    }


def _samples(model: PreTrainedModel, inputs: Inputs) -> list[str]:
    """Continuations of the prompts, drawn with the same random numbers for every model."""
    run, tokenizer = inputs.run, inputs.corpus.tokenizer
    return [
        sample(model, tokenizer, prompt, run, run.sample_tokens, seed=number)
        for number, prompt in enumerate(run.prompts)
    ]


def _as_text(record: dict[str, Any], trial: Trial) -> str:
    """A finished training run, for people."""
    diverged = f", diverged at step {record['diverged']}" if record["diverged"] else ""
    settings = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in trial._asdict().items())
    return f"validation loss {record['loss']:.4f}{diverged} in {duration(record['seconds'])} ({settings})"


def _final_run(seed: int) -> str:
    return f"seed-{seed}"


def _tuning_run(level: int, number: int) -> str:
    return f"tuning-{level}-{number}"


def _final_trial(contender: Contender, chosen: dict[str, Trial]) -> Trial:
    trial = chosen[contender.control_of or contender.name]
    return trial._replace(learning_rate=trial.learning_rate * contender.rate_factor)
