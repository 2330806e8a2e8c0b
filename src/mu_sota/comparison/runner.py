"""MU beside standard Transformers: tune all alike, train all on the same batches, score the test split once, record."""

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from mu_sota.common import environment
from mu_sota.common.environment import default_device
from mu_sota.common.files import write_json
from mu_sota.common.text import duration, timestamp
from mu_sota.data.corpus import load_corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.evaluation.metrics import Score, evaluate
from mu_sota.evaluation.ngram import KneserNey, unigram
from mu_sota.generation.continuation import prompt_ids, sample
from mu_sota.leakcheck.checks import assert_causal
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import BEST_FOLDER
from mu_sota.settings.load import Settings
from mu_sota.training.before_training import choose_precision, default_micro_batch, fitted_to_tokenizer
from mu_sota.training.interrupt import Interrupt, Interrupted

from . import report
from .baselines import build, load, with_dropout
from .conclusions import conclude
from .contenders import QUESTIONS, Arm, Question, Stepper, make_arms
from .hyperparameter_search import GRID, Trial, at_edge, settings_tried, survivors
from .plan import Plan, Request, asked_settings, describe, make_plan
from .progress import Bar
from .single_training import CURVE_POINTS, WARMUP_SHARE, TrainingSetup, beginning, finish, train_once

PLAN_FILE = "plan.json"
RECORD_FILE = "comparison.json"
_TRAININGS = "trainings"  # a folder a training, which holds its record when it is done
_TRAINING_FILE = "training.json"
_SCORES_FILE = "scores.json"
_REFERENCES_FILE = "references.json"
_LOCK_FILE = ".lock"
_FORMAT = 3  # raise it when files in the folder change
_ORDER = 5  # of the n-gram model
_STRETCHES = 16  # few, since each seam makes n-grams that are not in the text; many, to meet all kinds of it
_TUNING_SEED = 1_000_000  # none of those that count


class Comparison:
    """A comparison: `describe` says what it would do, `run` does it.

    Args:
        request: what was asked for.
        settings: of the runs and of the MU model.

    Raises:
        InputError: unusable data, or settings that do not fit it.
    """

    def __init__(self, request: Request, settings: Settings) -> None:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError("a comparison runs in one process: start it with mu-sota compare, without torchrun")
        self.request, self.run_settings = request, settings.run
        self.settings = asked_settings(settings)
        self.corpus = load_corpus(request.data, tokenizer=settings.run.tokenizer, vocab_size=settings.model.vocab_size)
        self.windows = TrainWindows(self.corpus.train.tokens, settings.run.window, settings.run.stride)
        if len(self.windows) < settings.run.batch_size:
            raise InputError(
                f"the training split has {len(self.windows)} windows, less than a batch of {settings.run.batch_size}; "
                f"give more text, or lower batch_size or window with --set"
            )
        self.config = fitted_to_tokenizer(settings.model, self.corpus)
        for prompt in settings.run.prompts:  # found unusable now, not when all is trained
            positions = self.config.max_position_embeddings
            prompt_ids(self.corpus.tokenizer, prompt, settings.run.sample_tokens, positions)
        self.device = default_device()
        self.interrupt = Interrupt()

    @property
    def questions(self) -> list[Question]:
        """Those asked for, in the usual order."""
        return [question for question in QUESTIONS if question in self.request.questions]

    def make_plan(self) -> Plan:
        """Size and time all models, and decide the steps."""
        print("Sizing the models, and timing their steps, which takes minutes:", file=sys.stderr, flush=True)
        run = self.run_settings
        stepper = Stepper(
            run,
            run.micro_batch_size or default_micro_batch(run, processes=1),
            choose_precision(run.precision),
            self.device,
        )
        arms = make_arms(self.config, run, self.questions, self.request.controls, stepper, self._tell_size)
        return make_plan(arms, self.request, run, self.corpus, stepper.micro_batch_size, stepper.precision)

    @staticmethod
    def _tell_size(arm: Arm) -> None:
        said = f"{arm.parameters.total:,} parameters, {arm.seconds_per_step:.3f} s a step"
        print(f"  {arm.title}: {said}", file=sys.stderr, flush=True)

    def describe(self, plan: Plan) -> str:
        """A plan as text."""
        return describe(plan, self.run_settings, self.corpus, self.device.type)

    def plan_in(self, out: Path) -> Plan:
        """The plan of the comparison in a folder.

        Raises:
            InputError: there is none, or it is of another comparison.
        """
        known = self._known(out, resume=True)
        if not known:
            raise InputError(f"there is no comparison in {out}; leave out --resume to plan one")
        return Plan.from_dict(known["plan"])

    def run(self, out: Path, resume: bool) -> dict[str, Any]:
        """Do it, or what is left of it, and leave record and report in `out`.

        Returns:
            The record, as `comparison.json` has it.

        Raises:
            InputError: another comparison is in `out` or at work there, or a model has a leak.
            Interrupted: Ctrl-C or SIGTERM while models are trained or evaluated; it can be resumed.
        """
        known = self._known(out, resume)
        if not known:
            plan = self.make_plan()
            print(self.describe(plan) + "\n", flush=True)
            known = self._asked() | {
                "plan": plan.as_dict(),
                "leak_checks": {arm.name: self._leak_check(arm) for arm in plan.arms if arm.control_of is None},
                "machines": [],
                "started": timestamp(),
            }
        else:
            print(self.describe(Plan.from_dict(known["plan"])) + "\n", flush=True)
        here = environment.describe()
        if here not in known["machines"]:
            known["machines"].append(here)
            write_json(out / PLAN_FILE, known)
        lock = FileLock(out / _LOCK_FILE, timeout=0)
        try:
            with lock, self.interrupt.listening():
                record = self._work_off(out, known)
        except Timeout:
            raise InputError(f"another process is at work on the comparison in {out}; wait for it to end") from None
        (out / _LOCK_FILE).unlink(missing_ok=True)
        return record

    def _asked(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "request": asdict(self.request) | {"questions": list(self.request.questions)},
            "settings": self.settings,
            "data_fingerprint": self.corpus.fingerprint,
        }

    def _known(self, out: Path, resume: bool) -> dict[str, Any]:
        """What the folder holds of this comparison so far, or nothing."""
        if out.exists() and not out.is_dir():
            raise InputError(f"--out is {out}, which is a file; give a folder")
        known = _read(out / PLAN_FILE, "give another --out")
        if known:
            _require_same(known, self._asked(), out, resume)
        elif (out / _TRAININGS).exists():
            raise InputError(f"{out} holds trainings of a comparison, but not its {PLAN_FILE}; give another --out")
        return known

    def _work_off(self, out: Path, known: dict[str, Any]) -> dict[str, Any]:
        plan = Plan.from_dict(known["plan"])
        work = _Work(self, plan, out)
        try:
            chosen = {arm.name: work.tune(arm) for arm in plan.arms if arm.control_of is None}
            trials = {arm.name: _trial_of(arm, chosen) for arm in plan.arms}
            for number in range(plan.seeds):  # seed by seed: should the machine slow down, all models meet it
                for arm in plan.arms:
                    work.train(arm, trials[arm.name], plan.seeds_of(arm)[number])
            scores = {(arm.name, seed): work.score(arm, seed) for arm in plan.arms for seed in plan.seeds_of(arm)}
            references = work.references()
            arms = [self._arm_record(arm, trials[arm.name], plan, work, known, scores) for arm in plan.arms]
        finally:
            work.bar.close()
        record = self._record(out, plan, known, arms, references)
        write_json(out / RECORD_FILE, record)
        report.write(record, out)
        return record

    def _arm_record(
        self,
        arm: Arm,
        trial: Trial,
        plan: Plan,
        work: "_Work",
        known: dict[str, Any],
        scores: dict[tuple[str, int], Any],
    ) -> dict[str, Any]:
        runs = [work.training(arm, f"seed-{seed}") | scores[arm.name, seed] for seed in plan.seeds_of(arm)]
        per_step = plan.batch_tokens * arm.flops_per_token
        for run in runs:
            run["curve"] = [
                row | {"tokens": row["step"] * plan.batch_tokens, "flops": row["step"] * per_step}
                for row in run["curve"]
            ]
        return {
            "name": arm.name,
            "label": arm.label,
            "title": arm.title,
            "family": arm.family,
            "matched_on": arm.matched_on,
            "match_ratio": arm.match_ratio,
            "control_of": arm.control_of,
            "new_seeds": arm.new_seeds,
            "config": with_dropout(arm.config, trial.dropout).to_diff_dict(),
            "parameters": arm.parameters._asdict(),
            "flops_per_token": arm.flops_per_token,
            "training_flops": plan.steps * per_step,
            "seconds_per_step": arm.seconds_per_step,
            "leak_check": known["leak_checks"][arm.control_of or arm.name],
            "tuning": work.tuning(arm),
            "chosen": trial._asdict(),
            "at_edge": [] if arm.control_of else at_edge(trial),
            "runs": runs,
            "samples": work.samples(arm),
        }

    def _record(
        self,
        out: Path,
        plan: Plan,
        known: dict[str, Any],
        arms: list[dict[str, Any]],
        references: list[dict[str, Any]],
    ) -> dict[str, Any]:
        corpus, request, mu = self.corpus, self.request, plan.arms[0].parameters
        questions, first = self.questions, known["machines"][0]
        kernels = first["kernels"] == "compiled" and not first["gpus"] and plan.precision == "fp32"
        tokens = plan.steps * plan.batch_tokens
        epochs = tokens / corpus.train.n_predicted
        return {
            "format": _FORMAT,
            "command": request.command(out),
            "data": request.data,
            "data_fingerprint": corpus.fingerprint,
            "corpus": {
                "vocab_size": self.config.vocab_size,
                "tokenizer": self.run_settings.tokenizer,
                **{f"{split}_tokens": getattr(corpus, split).n_predicted for split in ("train", "validation", "test")},
            },
            "preset": request.preset,
            "settings": self.settings
            | {"precision": plan.precision, "micro_batch_size": plan.micro_batch_size}
            | {"warmup_share": WARMUP_SHARE, "validation_tokens_of_curves": plan.curve_tokens},
            "match": questions,
            "seeds": list(range(plan.seeds)),
            "steps": plan.steps,
            "tokens": tokens,
            "epochs": epochs,
            "trials": request.trials,
            "grid": GRID,
            "rungs": [rung._asdict() for rung in plan.rungs],
            "machine": first,
            "other_machines": known["machines"][1:],
            "started": known["started"],
            "finished": timestamp(),
            "arms": arms,
            "prompts": self.run_settings.prompts,
            "references": references,
            "shares": {
                "tables": mu.tables / mu.total,
                "outside": mu.outside / mu.total,
                "embeddings": (mu.total - mu.tables - mu.outside) / mu.total,
            },
            **conclude(arms, references, questions, kernels, epochs),
        }

    def _leak_check(self, arm: Arm) -> dict[str, Any]:
        """Refuse to compare a model that sees what it is to predict."""
        set_seed(0)
        model = torch.nn.Module.to(build(arm.config, dropout=0.1), self.device)
        found = assert_causal(model)
        print(f"{arm.title}: {found.summary()}", flush=True)
        return {**found.as_dict(), "text": found.summary()}


class _Work:
    """The trainings and evaluations, each done once: what has left its file in `out` is read from there."""

    def __init__(self, comparison: Comparison, plan: Plan, out: Path) -> None:
        self.comparison, self.plan, self.out = comparison, plan, out
        self.plan_id = hashlib.sha256(json.dumps(plan.as_dict(), sort_keys=True).encode()).hexdigest()[:16]
        run, corpus = comparison.run_settings, comparison.corpus
        self.bar = Bar(plan.seconds)
        self.setup = TrainingSetup(
            replace(corpus, validation=beginning(corpus.validation, plan.curve_tokens)),
            comparison.windows,
            run,
            run.micro_batch_size or plan.micro_batch_size,
            plan.precision,
            comparison.interrupt,
            self.bar.tick,
        )
        self.finished = 0

    def tune(self, arm: Arm) -> Trial:
        """Successive halving on the validation split."""
        trials = settings_tried(self.comparison.request.trials)
        for level, rung in enumerate(self.plan.rungs):
            records = [
                self._training(
                    arm,
                    trial,
                    _TUNING_SEED,
                    rung.steps,
                    1,
                    _tuning(level, number),
                    f"setting {number + 1} of {rung.trials}, {rung.steps} steps",
                )
                for number, trial in enumerate(trials)
            ]
            losses = [None if record["diverged"] else record["loss"] for record in records]
            try:
                trials = [trials[number] for number in survivors(losses, -(-len(trials) // 2))]
            except InputError as error:
                raise InputError(f"{arm.title}: {error}") from None
        return trials[0]

    def train(self, arm: Arm, trial: Trial, seed: int) -> dict[str, Any]:
        """A training that counts."""
        return self._training(arm, trial, seed, self.plan.steps, CURVE_POINTS, f"seed-{seed}", f"seed {seed}")

    def _place(self, arm: Arm, name: str) -> Path:
        return self.out / _TRAININGS / arm.name / name

    def _training(
        self, arm: Arm, trial: Trial, seed: int, steps: int, points: int, name: str, said: str
    ) -> dict[str, Any]:
        place = self._place(arm, name)
        seconds = self.plan.training_seconds(arm, steps, points)
        self.finished += 1
        record = self.training(arm, name)
        if record:
            finish(place)
            self.bar.skip(seconds)
            return record
        self._stop_if_asked()
        said = f"{self.finished} of {self.plan.trainings}: {arm.title}, {said}"
        self.bar.begin(said, steps, seconds)
        try:
            done = train_once(self.setup, arm.config, trial, seed, steps, points, place)
        except (RuntimeError, MemoryError) as error:
            if not environment.is_out_of_memory(error):
                raise
            less = max(self.setup.micro_batch_size // 2, 1)
            raise InputError(
                f"out of memory while {arm.title} was trained; go on with --resume --set micro_batch_size={less}: the "
                f"same batches, in more parts"
            ) from error
        finally:
            environment.release_memory()
        record = {"seed": seed, **trial._asdict(), "steps": steps, **done}
        self._write(place / _TRAINING_FILE, record)
        finish(place)
        self.bar.end()
        loss = f"validation loss {record['loss']:.4f}"
        if record["diverged"]:
            loss += f", diverged at step {record['diverged']}"
        settings = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in trial._asdict().items())
        tqdm.write(f"{said}: {loss} in {duration(record['seconds'])} ({settings})")
        return record

    def references(self) -> list[dict[str, Any]]:
        """The models that need no gradient: frequencies, and n-grams with modified Kneser-Ney smoothing."""
        file = self.out / _REFERENCES_FILE
        self._stop_if_asked()
        if not (known := self._read(file)):
            corpus, vocabulary = self.comparison.corpus, self.comparison.config.vocab_size
            splits = {name: getattr(corpus, name) for name in ("validation", "test")}
            known["unigram"] = {"label": "unigram model", "entries": vocabulary, "seconds": 0.0} | {
                name: unigram(corpus.train, split, vocabulary).as_dict() for name, split in splits.items()
            }
            texts = {"": corpus.train.tokens}
            if (seen := self.plan.steps * self.plan.batch_tokens) < corpus.train.n_predicted:
                texts[", as many tokens"] = spread_over(corpus.train.tokens, seen)
            for words, tokens in texts.items():
                start = time.monotonic()
                ngrams = KneserNey(tokens, vocabulary, _ORDER)
                label = f"Kneser-Ney {_ORDER}-gram{words}"
                known["kneser-ney-seen" if words else "kneser-ney"] = {
                    "label": label,
                    "entries": ngrams.num_ngrams,
                    "seconds": round(time.monotonic() - start, 2),
                } | {name: ngrams.score(split).as_dict() for name, split in splits.items()}
            self._write(file, known)
        return [{"name": name} | one for name, one in known.items()]

    def score(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Validation and test split, whole, of the best weights. Every training is over by now."""
        place = self._place(arm, f"seed-{seed}")
        seconds = self.plan.evaluation_seconds(arm, self.plan.final_tokens)
        known = self._read(place / _SCORES_FILE)
        if known:
            self.bar.skip(seconds)
            return known
        self._stop_if_asked()
        self.bar.begin(f"{arm.title}, seed {seed}: validation and test split", 1, seconds)
        corpus = self.comparison.corpus
        model = self._best(arm, seed)
        known = {split: self._evaluate(model, getattr(corpus, split)).as_dict() for split in ("validation", "test")}
        self._write(place / _SCORES_FILE, known)
        self.bar.end()
        return known

    def _evaluate(self, model: PreTrainedModel, split: Any) -> Score:
        run = self.comparison.run_settings
        return evaluate(
            model,
            split,
            window=run.window,
            stride=run.eval_stride or run.window,
            batch_size=self.plan.micro_batch_size,
        )

    def samples(self, arm: Arm) -> list[str]:
        """How the first seed's model continues the prompts, drawn with the same random numbers for every model."""
        run = self.comparison.run_settings
        model = self._best(arm, self.plan.seeds_of(arm)[0])
        return [
            sample(model, self.comparison.corpus.tokenizer, prompt, run, run.sample_tokens, seed=number)
            for number, prompt in enumerate(run.prompts)
        ]

    def tuning(self, arm: Arm) -> list[dict[str, Any]]:
        """The trials of every rung; a control has none."""
        if arm.control_of:
            return []
        return [
            {
                "steps": rung.steps,
                # Fewer than planned where some of the rung before diverged.
                "trials": [
                    trial for number in range(rung.trials) if (trial := self.training(arm, _tuning(level, number)))
                ],
            }
            for level, rung in enumerate(self.plan.rungs)
        ]

    def training(self, arm: Arm, name: str) -> dict[str, Any]:
        """The record of a finished training, or nothing."""
        return self._read(self._place(arm, name) / _TRAINING_FILE)

    def _read(self, file: Path) -> dict[str, Any]:
        content = _read(file, "remove it, and it is made again with --resume")
        if content and content.pop("plan", None) != self.plan_id:
            raise InputError(f"{file} belongs to another comparison than {self.out / PLAN_FILE}; give another --out")
        return content

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        write_json(file, {"plan": self.plan_id, **content})

    def _best(self, arm: Arm, seed: int) -> PreTrainedModel:
        model = load(self._place(arm, f"seed-{seed}") / BEST_FOLDER)
        torch.nn.Module.to(model, self.comparison.device)
        return model

    def _stop_if_asked(self) -> None:
        if self.comparison.interrupt.received:
            raise Interrupted("all that is finished is kept")


def spread_over(tokens: np.ndarray, count: int) -> np.ndarray:
    """`count` tokens of a text and the one before them, in stretches that begin at equal distances."""
    length = -(-count // _STRETCHES)
    starts = np.linspace(0, len(tokens) - length, _STRETCHES).astype(int)
    return np.concatenate([tokens[start : start + length] for start in starts])[: count + 1]


def recorded_request(out: Path) -> dict[str, Any]:
    """What the comparison in a folder was asked for, or nothing."""
    return dict(_read(out / PLAN_FILE, "give another --out").get("request", {}))


def _tuning(level: int, number: int) -> str:
    return f"tuning-{level}-{number}"


def _trial_of(arm: Arm, chosen: dict[str, Trial]) -> Trial:
    trial = chosen[arm.control_of or arm.name]
    return trial._replace(learning_rate=trial.learning_rate * arm.rate_factor)


def _require_same(known: dict[str, Any], asked: dict[str, Any], out: Path, resume: bool) -> None:
    if not resume:
        raise InputError(f"{out} already holds a comparison; add --resume to go on with it, or give another --out")
    if known.get("format") != asked["format"]:
        raise InputError(f"the comparison in {out} was started by another version of mu-sota; give another --out")
    if known["data_fingerprint"] != asked["data_fingerprint"]:
        raise InputError(
            f"the comparison in {out} was started on other text or tokens than {asked['request']['data']!r} gives now; "
            f"resume it with its own data, or give another --out"
        )
    for part in ("request", "settings"):
        for key, new in asked[part].items():
            if key == "overrides":  # what they set is among the settings
                continue
            if (old := known[part].get(key)) != new:
                key = {"questions": "match"}.get(key, key)
                raise InputError(
                    f"the comparison in {out} was started with {key} {old!r}, not {new!r}; resume it as it was "
                    f"started, or give another --out"
                )


def _read(file: Path, remedy: str) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); {remedy}") from None
