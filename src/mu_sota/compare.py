"""MU beside standard Transformers: tune all alike, train all on the same batches, score the test split once, record."""

import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from . import machine, report
from .arms import QUESTIONS, Arm, Question, Stepper, make_arms
from .baselines import build, load
from .causality import assert_causal
from .course import CURVE_POINTS, WARMUP_SHARE, Ground, beginning, finish, train_once
from .data import TrainWindows, load_corpus
from .errors import InputError
from .evaluate import Score, evaluate
from .files import write_json
from .findings import conclude
from .ngrams import KneserNey, unigram
from .plan import Plan, Request, asked_settings, describe, make_plan
from .settings import Settings
from .train import Interrupt, Interrupted, choose_precision, default_micro_batch, duration, fitted_to_tokenizer
from .trained import BEST_FOLDER, default_device, sample
from .tuning import GRID, Trial, at_edge, settings_tried, survivors

PLAN_FILE = "plan.json"
RECORD_FILE = "comparison.json"
_TRAININGS = "trainings"  # a folder a training, which holds its record when it is done
_TRAINING_FILE = "training.json"
_SCORES_FILE = "scores.json"
_REFERENCES_FILE = "references.json"
_FORMAT = 1
_ORDER = 5  # of the n-gram model
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
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("a comparison runs in one process: start it with mu-sota compare, without torchrun")
        self.request, self.run_settings = request, settings.run
        self.settings = asked_settings(settings)
        self.corpus = load_corpus(request.data, tokenizer=settings.run.tokenizer, vocab_size=settings.model.vocab_size)
        self.windows = TrainWindows(self.corpus.train.tokens, settings.run.window, settings.run.stride)
        self.config = fitted_to_tokenizer(settings.model, self.corpus)
        self.device = default_device()
        self.interrupt = Interrupt()

    @property
    def questions(self) -> list[Question]:
        """Those asked for, in the usual order."""
        return [question for question in QUESTIONS if question in self.request.questions]

    def make_plan(self) -> Plan:
        """Size and time all models, and decide the steps."""
        run = self.run_settings
        stepper = Stepper(
            run,
            run.micro_batch_size or default_micro_batch(run, processes=1),
            choose_precision(run.precision),
            self.device,
        )
        arms = make_arms(self.config, run, self.questions, self.request.controls, stepper)
        return make_plan(arms, self.request, run, self.corpus, stepper.micro_batch_size, stepper.precision)

    def describe(self, plan: Plan) -> str:
        """A plan as text."""
        return describe(plan, self.run_settings, self.corpus, self.device.type)

    def run(self, out: Path, resume: bool) -> dict[str, Any]:
        """Do it, or what is left of it, and leave record and report in `out`.

        Returns:
            The record, as `comparison.json` has it.

        Raises:
            InputError: another comparison is in `out`, or a model has a leak.
            Interrupted: Ctrl-C or SIGTERM; it can be resumed.
        """
        with self.interrupt.listening():
            return self._run(out, resume)

    def _run(self, out: Path, resume: bool) -> dict[str, Any]:
        asked = {
            "format": _FORMAT,
            "request": asdict(self.request) | {"questions": list(self.request.questions)},
            "settings": self.settings,
            "data_fingerprint": self.corpus.fingerprint,
        }
        known = _read(out / PLAN_FILE)
        if known:
            _require_same(known, asked, out, resume)
            plan = Plan.from_dict(known["plan"])
            print(self.describe(plan) + "\n")
        else:
            print("Sizing the models, and timing their steps ...", flush=True)
            plan = self.make_plan()
            print(self.describe(plan) + "\n", flush=True)
            known = asked | {
                "plan": plan.as_dict(),
                "leak_checks": {arm.name: self._leak_check(arm) for arm in plan.arms if arm.control_of is None},
                "machine": machine.describe(),
                "started": _now(),
            }
            write_json(out / PLAN_FILE, known)
        work = _Work(self, plan, out)
        chosen = {arm.name: work.tune(arm) for arm in plan.arms if arm.control_of is None}
        trials = {arm.name: _trial_of(arm, chosen) for arm in plan.arms}
        for number in range(plan.seeds):  # seed by seed, so that what an interrupted comparison has is comparable
            for arm in plan.arms:
                work.train(arm, trials[arm.name], plan.seeds_of(arm)[number])
        scores = {(arm.name, seed): work.score(arm, seed) for arm in plan.arms for seed in plan.seeds_of(arm)}
        arms = [self._arm_record(arm, trials[arm.name], plan, work, known, scores) for arm in plan.arms]
        references = work.references()
        work.bar.close()
        record = self._record(plan, known, arms, references)
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
            "config": arm.config.to_diff_dict(),
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
        self, plan: Plan, known: dict[str, Any], arms: list[dict[str, Any]], references: list[dict[str, Any]]
    ) -> dict[str, Any]:
        corpus, request, mu = self.corpus, self.request, plan.arms[0].parameters
        questions = self.questions
        tokens = plan.steps * plan.batch_tokens
        return {
            "format": _FORMAT,
            "command": request.command,
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
            "epochs": tokens / corpus.train.n_predicted,
            "trials": request.trials,
            "grid": GRID,
            "rungs": [rung._asdict() for rung in plan.rungs],
            "machine": known["machine"],
            "started": known["started"],
            "finished": _now(),
            "arms": arms,
            "prompts": self.run_settings.prompts,
            "references": references,
            "shares": {
                "tables": mu.tables / mu.total,
                "outside": mu.outside / mu.total,
                "embeddings": (mu.total - mu.tables - mu.outside) / mu.total,
            },
            **conclude(arms, references, questions),
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
        run, corpus = comparison.run_settings, comparison.corpus
        self.bar = _Bar(plan)
        self.ground = Ground(
            replace(corpus, validation=beginning(corpus.validation, plan.curve_tokens)),
            comparison.windows,
            run,
            plan.micro_batch_size,
            plan.precision,
            comparison.interrupt,
            self.bar.tick,
        )
        self.finished = 0

    def tune(self, arm: Arm) -> Trial:
        """Successive halving on the validation split."""
        trials = settings_tried(self.comparison.request.trials)
        for level, rung in enumerate(self.plan.rungs):
            losses = [
                self._training(
                    arm,
                    trial,
                    _TUNING_SEED,
                    rung.steps,
                    1,
                    _tuning(level, number),
                    f"setting {number + 1} of {rung.trials}, {rung.steps} steps",
                )["loss"]
                for number, trial in enumerate(trials)
            ]
            trials = [trials[number] for number in survivors(losses, -(-len(trials) // 2))]
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
        record = _read(place / _TRAINING_FILE)
        if record:
            self.bar.skip(seconds)
            return record
        said = f"{self.finished} of {self.plan.trainings}: {arm.title}, {said}"
        self.bar.begin(said, steps, seconds)
        record = {"seed": seed, **trial._asdict(), "steps": steps}
        record |= train_once(self.ground, arm.config, trial, seed, steps, points, place)
        if seed == _TUNING_SEED:
            shutil.rmtree(place / BEST_FOLDER, ignore_errors=True)
        elif record["loss"] is None:
            raise InputError(
                f"{arm.title} diverged with seed {seed} before its first evaluation, with the settings that tuning had "
                f"chosen ({trial}); compare again with a lower max_grad_norm (--set), or a longer --budget"
            )
        write_json(place / _TRAINING_FILE, record)
        finish(place)
        self.bar.end()
        loss = "diverged" if record["loss"] is None else f"validation loss {record['loss']:.4f}"
        settings = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in trial._asdict().items())
        tqdm.write(f"{said}: {loss} in {duration(record['seconds'])} ({settings})")
        return record

    def references(self) -> list[dict[str, Any]]:
        """The models that need no gradient: frequencies, and n-grams with modified Kneser-Ney smoothing."""
        file = self.out / _REFERENCES_FILE
        if not (known := _read(file)):
            corpus, vocabulary = self.comparison.corpus, self.comparison.config.vocab_size
            splits = {name: getattr(corpus, name) for name in ("validation", "test")}
            known["unigram"] = {"label": "unigram model", "entries": vocabulary, "seconds": 0.0} | {
                name: unigram(corpus.train, split, vocabulary).as_dict() for name, split in splits.items()
            }
            texts = {"": corpus.train.tokens}
            if (seen := self.plan.steps * self.plan.batch_tokens) < corpus.train.n_predicted:
                texts[", as many tokens"] = corpus.train.tokens[: seen + 1]
            for words, tokens in texts.items():
                start = time.monotonic()
                ngrams = KneserNey(tokens, vocabulary, _ORDER)
                label = f"Kneser-Ney {_ORDER}-gram{words}"
                known[f"kneser-ney-{len(tokens) - 1}"] = {
                    "label": label,
                    "entries": ngrams.num_ngrams,
                    "seconds": round(time.monotonic() - start, 2),
                } | {name: ngrams.score(split).as_dict() for name, split in splits.items()}
            write_json(file, known)
        return [{"name": name} | one for name, one in known.items()]

    def score(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Validation and test split, whole, of the best weights. Every training is over by now."""
        place = self._place(arm, f"seed-{seed}")
        seconds = self.plan.evaluation_seconds(arm, self.plan.final_tokens)
        known = _read(place / _SCORES_FILE)
        if known:
            self.bar.skip(seconds)
            return known
        self._stop_if_asked()
        self.bar.begin(f"{arm.title}, seed {seed}: validation and test split", 1, seconds)
        corpus = self.comparison.corpus
        model = self._best(arm, seed)
        known = {split: self._evaluate(model, getattr(corpus, split)).as_dict() for split in ("validation", "test")}
        write_json(place / _SCORES_FILE, known)
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
                "trials": [self.training(arm, _tuning(level, number)) for number in range(rung.trials)],
            }
            for level, rung in enumerate(self.plan.rungs)
        ]

    def training(self, arm: Arm, name: str) -> dict[str, Any]:
        """The record of a finished training."""
        return _read(self._place(arm, name) / _TRAINING_FILE)

    def _best(self, arm: Arm, seed: int) -> PreTrainedModel:
        model = load(self._place(arm, f"seed-{seed}") / BEST_FOLDER)
        torch.nn.Module.to(model, self.comparison.device)
        return model

    def _stop_if_asked(self) -> None:
        if self.comparison.interrupt.received:
            raise Interrupted("all that is finished is kept")


class _Bar:
    """Progress over all trainings in seconds as planned, so that the remaining time is right for slow models too."""

    def __init__(self, plan: Plan) -> None:
        self.total = plan.seconds
        self.bar: tqdm[Any] = tqdm(
            total=self.total,
            bar_format="{percentage:3.0f}% |{bar:20}| {elapsed} so far, {remaining} left: {desc}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            smoothing=0.02,
            dynamic_ncols=True,
        )
        self.per_step, self.steps, self.last = 0.0, 0, 0

    def skip(self, seconds: float) -> None:
        """Work that was finished before, and takes no time now."""
        done = min(self.bar.n + seconds, self.total)  # sums of parts round
        self.bar.initial += done - self.bar.n
        self.bar.n = done

    def begin(self, what: str, steps: int, seconds: float) -> None:
        """Work of so many steps, planned to take `seconds`."""
        self.bar.set_description_str(what, refresh=False)
        self.bar.set_postfix_str("", refresh=False)
        self.per_step, self.steps, self.last = seconds / steps, steps, 0

    def tick(self, step: int, loss: float) -> None:
        """A step is done; `loss` is the last validation loss, if there is one yet."""
        if not self.last:  # an interrupted training may go on here
            self.skip((step - 1) * self.per_step)
            self.last = step - 1
        said = "" if math.isnan(loss) else f", validation loss {loss:.3f}"
        self.bar.set_postfix_str(f"step {step:,} of {self.steps:,}{said}", refresh=False)
        self._update(step)

    def end(self) -> None:
        """The work is over, perhaps before its last step."""
        self._update(self.steps)

    def _update(self, step: int) -> None:
        self.bar.update(min((step - self.last) * self.per_step, self.total - self.bar.n))
        self.last = step

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def recorded_request(out: Path) -> dict[str, Any]:
    """What the comparison in a folder was asked for, or nothing."""
    return dict(_read(out / PLAN_FILE).get("request", {}))


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
                raise InputError(
                    f"the comparison in {out} was started with {key} {old!r}, not {new!r}; resume it as it was "
                    f"started, or give another --out"
                )


def _read(file: Path) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); remove it, and it is made again with --resume") from None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
