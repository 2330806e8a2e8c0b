"""Does a language model see the token it is asked to predict? Checks on any function from token ids to logits.

A check runs the model twice in ways that must not change what is compared (other later tokens, other rows, a longer
text, a cache, padding) and reports the largest change of the logits. Causality of the whole model is what is tested, as
in nanodo's tests and in "train on noise" checks, not the look of a mask.

Legend: B batch, T time, V vocabulary.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, set_seed

from .errors import InputError
from .locate import Location, locate
from .subject import EVERYTHING, Pass, Run, Subject, change, hooked, one_line, random_state_kept, spread

ROWS = (5, 7, 6, 8)
LENGTHS = (61, 59, 67, 53)
"""Default rows, and tokens of a row: the first that no weight has as a size, so that `locate` can tell axes apart."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest change let pass, in standard deviations of the logits, by the model's least precise number format. Between
passes of one shape a causal model changes by exactly 0 on a CPU. Many models compute parts in float32 whatever their
format, hence no finer one for float64."""

EXACT = 1e-4
"""Between passes of one shape, a change above this and below a coarse format's tolerance proves nothing: in bfloat16
the rounding of a causal model moved its logits by 0.04, and attention without a mask no further."""

ROUNDING_FACTOR = 10.0
"""Passes of different shapes take sums in another order. How much that can move the logits of a given model is
measured, by changing every embedding by one unit in the last place; changes up to so many times that are rounding."""

ROUNDING_DRAWS = 3

TOO_COARSE = 1.0
"""A tolerance, in standard deviations of the logits, beyond which a comparison says nothing."""

GRADIENT_SHARE = 1e-2
"""The gradient check's tolerance in parts of the others': a masked softmax gives a derivative of exactly 0."""

ATTEMPTS = 3
"""Failed comparisons, largest change first, that are tried for a location."""

STD = "std of the logits"

Verdict = Literal["ok", "leak", "differs", "skipped"]


class LeakError(InputError):
    """The model sees what it must not see, or a cache or padding changes what it predicts."""


@dataclass(frozen=True)
class Result:
    """What one check found.

    Args:
        check: its name.
        verdict: `ok`; `leak`; `differs` if a cache or padding changes predictions, which is a defect though no leak; or
            `skipped` if the model could not be asked that, or not to the end.
        change: its figure, `unit` says of what; None if skipped.
        tolerance: the largest figure let pass.
        unit: what the figure is measured in.
        meaning: of a finding, what it means; of a skipped check, why; else a remark or nothing.
        location: of a finding, where it arises, if one module can be named.
    """

    check: str
    verdict: Verdict
    change: float | None = None
    tolerance: float | None = None
    unit: str = STD
    meaning: str = ""
    location: Location | None = None

    def line(self) -> str:
        """One row of the report's table."""
        if self.change is None:
            return f"{self.check:17} {'-':>10} {'-':>10}  not checked: {self.meaning}"
        said = self.verdict if self.verdict == "ok" else self.verdict.upper()
        unit = f" ({self.unit})" if self.unit != STD else ""
        remark = f": {self.meaning}" if self.verdict == "ok" and self.meaning else ""
        return f"{self.check:17} {self.change:10.2g} {self.tolerance:10.0e}  {said}{unit}{remark}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "verdict": self.verdict,
            # JSON has no infinity.
            "change": self.change if self.change is None or math.isfinite(self.change) else str(self.change),
            "tolerance": self.tolerance,
            "unit": self.unit,
            "meaning": self.meaning,
            "location": self.location.as_dict() if self.location else None,
        }


@dataclass(frozen=True)
class Report:
    """All results on one model.

    Args:
        model: its class or name.
        vocab_size, rows, length: ids were drawn below `vocab_size`, in batches of `rows` x `length`.
        dtype, device: of the model.
        rounding: how far its logits move, in their standard deviations, if every embedding changes by one unit in the
            last place; None if it has no `nn.Embedding`.
        results: in the order in which the checks ran.
    """

    model: str
    vocab_size: int
    rows: int
    length: int
    dtype: str
    device: str
    rounding: float | None
    results: list[Result] = field(default_factory=list)

    @property
    def findings(self) -> list[Result]:
        """What is wrong: leaks, then other differences."""
        found = [result for result in self.results if result.verdict in ("leak", "differs")]
        return sorted(found, key=lambda result: result.verdict != "leak")

    @property
    def clean(self) -> bool:
        """No check found anything."""
        return not self.findings

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.rows} rows of {self.length} tokens below {self.vocab_size}, "
            f"{self.dtype} on {self.device}"
        )
        return "\n".join([head, "", TABLE_HEAD, *(result.line() for result in self.results), "", self.summary()])

    def summary(self) -> str:
        """The conclusion: what leaks, what it means and where it arises; or that nothing was found."""
        if self.clean:
            done = [result.check for result in self.results if result.verdict == "ok"]
            return f"no leak found within {self.length} tokens in {self.dtype} by {len(done)} checks: {', '.join(done)}"
        lines = []
        told: list[Location] = []
        for finding in self.findings:
            lines.append(f"{finding.verdict.upper()} ({finding.check}): {finding.meaning}")
            if finding.location and finding.location not in told:
                told.append(finding.location)
                lines.append(f"    {finding.location.sentence()}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "clean": self.clean,
            "vocab_size": self.vocab_size,
            "rows": self.rows,
            "length": self.length,
            "dtype": self.dtype,
            "device": self.device,
            "rounding": self.rounding,
            "checks": [result.as_dict() for result in self.results],
        }


TABLE_HEAD = f"{'check':17} {'change':>10} {'tolerance':>10}  (in standard deviations of the logits)"


def assert_causal(model: Callable[..., Any], vocab_size: int | None = None, **settings: Any) -> Report:
    """One line for a test suite: raise unless `check` finds the model clean; its arguments and its report.

    Raises:
        LeakError: what was found, by how much, what it means, and where it arises.
        InputError: the model could not be checked.
    """
    __tracebackhide__ = True  # pytest then shows the test's own line
    report = check(model, vocab_size, **settings)
    if not report.clean:
        first = report.findings[0]
        leaks = "the model is not causal, so its perplexity would mean nothing"
        differs = "the model does not give the same predictions in all ways in which it is used"
        raise LeakError(
            f"{leaks if first.verdict == 'leak' else differs}: {first.meaning} "
            f"(check '{first.check}': {first.change:.2g} {first.unit}, tolerance {first.tolerance:.0e})"
            f"{f'; it {first.location.sentence()}' if first.location else ''}"
        )
    return report


def check(
    model: Callable[..., Any],
    vocab_size: int | None = None,
    *,
    length: int | None = None,
    rows: int | None = None,
    device: torch.device | str | None = None,
    seen: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Ask a model in every way that applies to it whether it sees what it must not see.

    Modules, also those that a function calls, are checked in eval mode, and then in training mode, where BatchNorm, for
    one, takes other statistics. While they are, weights that are all (almost) zero get some noise: a projection that
    starts at zero would hide whatever comes through it. Weights, buffers, modes and the global random state are left
    as they were.

    Args:
        model: an `nn.Module` or any function from ids [B, T] to logits [B, T, V], or to something with `.logits`.
        vocab_size: ids are drawn below it. Default: from the model's configuration, else from its logits.
        length: tokens of a row. Default: 61, or what the model has positions for.
        rows: rows of the batch, at least 4. Default: 5.
        device: where ids are made. Default: where the module's parameters are.
        seen: told each result as soon as it is there.

    Raises:
        InputError: the model cannot be checked: it raises, gives no logits [B, T, V], gives NaN or the same logits
            whatever the tokens, or two passes over the same tokens differ.
    """
    subject = Subject(model, vocab_size, device, length=length)
    widths = subject.widths()
    if length is None:
        length = _default_length(widths, subject.positions)
    if length < 2:
        raise InputError(f"length is {length}, but must be at least 2, for one token to come after another")
    if subject.positions is not None and length > subject.positions:
        raise InputError(f"length is {length}, but the model has {subject.positions} positions; give at most that")
    if rows is None:
        rows = next((number for number in ROWS if number not in {*widths, length}), ROWS[0] + (length == ROWS[0]))
    if rows < 4 or rows == length:
        raise InputError(f"rows is {rows}, but must be at least 4 and another number than the {length} tokens of a row")
    with random_state_kept(), subject.awake():
        checks = _Checks(subject, rows, length, training=False)
        report = Report(
            model=subject.name,
            vocab_size=subject.vocab_size,
            rows=rows,
            length=length,
            dtype=str(checks.dtype)[6:],
            device=str(subject.device),
            rounding=checks.rounding,
        )
        for result in checks.run():
            report.results.append(result)
            seen(result)
    return report


def _default_length(widths: set[int], positions: int | None) -> int:
    limit = positions or max(LENGTHS)
    candidates = [*LENGTHS, *range(limit, 1, -1)]
    fitting = [number for number in candidates if number <= limit]
    return next((number for number in fitting if number not in widths), fitting[0] if fitting else limit)


def _seams(length: int) -> list[int]:
    """Cuts that deserve all rows: the ends, and the powers of two and beside them, where kernels have their seams."""
    powers = [2**k for k in range(length.bit_length())]
    return sorted(
        {near for power in powers for near in (power - 1, power, power + 1) if 0 < near < length} | {length - 1}
    )


class _Comparison(NamedTuple):
    """Two passes that must be equal, and what it means if they are not."""

    ours: Pass
    theirs: Pass
    meaning: str

    @property
    def of_one_shape(self) -> bool:
        return self.ours.run.size == self.theirs.run.size


class _Finding(NamedTuple):
    """How far the logits moved, and how far they might have."""

    change: float
    tolerance: float
    comparison: _Comparison

    def excess(self) -> float:
        return self.change / self.tolerance


class _Derivative(NamedTuple):
    """The largest forbidden derivative, in parts of the largest of all; its meaning; passes that should show it too."""

    share: float
    meaning: str
    comparisons: list[_Comparison]


class _Skip(Exception):
    """The model cannot be asked this; the message says why."""


class _Checks:
    """The checks on one subject in one mode, and what they share: ids, reference logits, their scale."""

    def __init__(self, subject: Subject, rows: int, length: int, training: bool) -> None:
        self.subject, self.rows, self.length, self.training = subject, rows, length, training
        self.generator = torch.Generator().manual_seed(0)
        self.drawn = subject.drawn_ids()
        # Where in `drawn` an id stands, so that "any other token" is a sum.
        self.picks = torch.randint(len(self.drawn), (rows, length), generator=self.generator)
        self.ids = self._to_ids(self.picks)
        self.base = self._run(self.ids)
        logits = self.base.logits
        self.dtype = _least_precise(subject)
        self.tolerance = TOLERANCES[self.dtype]
        self.scale = spread(logits)
        self.rounding: float | None = None
        if logits.isnan().any():
            raise InputError("the model's logits hold NaN, so nothing can be said of it; check its weights")
        others = self._run(self._to_ids(self._others(self.picks)))()
        if not self.scale or change(others, logits) <= self.tolerance * self.scale:
            raise InputError(
                "the model gives the same logits whatever the tokens, so no leak could show; "
                "give it weights through which they can show"
            )
        again = change(self.base(), logits) / self.scale
        if again > self.tolerance:
            raise InputError(self._not_deterministic(again))
        self.names = subject.named_modules()
        self.embeddings = subject.embeddings()
        if self.embeddings and not training:
            self.rounding = self._measured_rounding()

    def _not_deterministic(self, moved: float) -> str:
        return (
            f"the model is not deterministic: two passes over the same tokens differ by {moved:.2g} standard "
            f"deviations of the logits (tolerance {self.tolerance:.0e}), so no comparison would mean anything; switch "
            f"off its dropout, sampling or noise, or give a function that does"
        )

    def _measured_rounding(self) -> float:
        """How far the logits move, in their standard deviations, if every embedding changes in its last place."""
        # At least that of float32, in which many models compute parts whatever their format.
        unit = max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps)

        def shake(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None  # one that also returns the positions, say
            signs = torch.randint(2, output.shape, generator=self.generator).to(output) * 2 - 1
            return output * (1 + unit * signs)

        with hooked(self.embeddings, shake):
            return max(change(self.base(), self.base.logits) for _ in range(ROUNDING_DRAWS)) / self.scale

    def run(self) -> Iterator[Result]:
        """In eval mode all checks; then, of modules, those that compare passes of one shape in training mode too."""
        if self.training:
            yield self._compare("future (training)", self._other_futures())
            yield self._compare("batch (training)", self._replaced_rows())
            return
        yield self._required(self._compare("future", self._other_futures()))
        yield self._required(self._compare("batch", self._replaced_rows()))
        yield self._compare("row alone", self._single_rows())
        yield self._compare("length", self._prefixes())
        yield self._gradient()
        yield self._compare("cache", self._decoded(), "differs")
        yield self._compare("padding", self._padded(), "differs")
        if self.subject.roots:
            try:
                yield from _Checks(self.subject, self.rows, self.length, training=True).run()
            except InputError as error:
                yield Result("training", "skipped", meaning=f"in training mode {error}")

    def _required(self, result: Result) -> Result:
        """A model that cannot be asked this has not been checked."""
        if result.verdict == "skipped":
            raise InputError(f"the check '{result.check}' could not be finished: {result.meaning}")
        return result

    # What is compared.

    def _other_futures(self) -> Iterator[_Comparison]:
        seams = _seams(self.length)
        for cut in seams:
            yield self._other_future(self.base, self.picks, cut)
        # Every other position too, in one row: a position that sees just the next one is found by one cut only.
        for row in range(self.rows):
            picks = self.picks[row : row + 1]
            alone = self._run(self._to_ids(picks))
            for cut in range(1 + row, self.length, self.rows):
                if cut not in seams:
                    yield self._other_future(alone, picks, cut)

    def _other_future(self, ours: Run, picks: Tensor, cut: int) -> _Comparison:
        future = self._to_ids(torch.cat([picks[:, :cut], self._others(picks[:, cut:])], dim=1))
        return _Comparison(
            Pass(ours, columns=slice(cut)),
            Pass(self._run(future), columns=slice(cut)),
            f"later tokens change earlier predictions (most when those from position {cut} on are replaced)",
        )

    def _replaced_rows(self) -> Iterator[_Comparison]:
        for row in range(self.rows):
            one = slice(row, row + 1)
            picks = self._others(self.picks)
            picks[one] = self.picks[one]
            yield _Comparison(
                Pass(self.base, rows=one),
                Pass(self._run(self._to_ids(picks)), rows=one),
                f"the other rows of its batch change what it predicts in row {row}",
            )

    def _single_rows(self) -> Iterator[_Comparison]:
        for row in range(self.rows):
            one = slice(row, row + 1)
            yield _Comparison(
                Pass(self.base, rows=one),
                Pass(self._run(self.ids[one])),
                f"row {row} alone gives other predictions than the same row among others",
            )

    def _prefixes(self) -> Iterator[_Comparison]:
        cuts = {1, 2, self.length // 3, self.length // 2, self.length - 1} - {0, self.length}
        for cut in sorted(cuts, reverse=True):  # the longest first: what a model cannot take is a very short text
            yield _Comparison(
                Pass(self.base, columns=slice(cut)),
                Pass(self._run(self.ids[:, :cut])),
                f"a text of length {cut} gives other predictions than the same tokens at the start of a longer one",
            )

    def _decoded(self) -> Iterator[_Comparison]:
        self._require_cache()
        for prompt in (1, self.length // 2):
            decoded = Run(partial(self._decode, prompt, self.length - prompt), (self.rows, 1))
            meaning = (
                f"decoding with its cache after a prompt of {prompt} gives other predictions than one pass over the "
                f"whole text"
            )
            # All steps; then the last alone, which `locate` can hold against the full pass.
            for first in (prompt, self.length - 1):
                yield _Comparison(
                    Pass(self.base, columns=slice(first - 1, self.length - 1)),
                    Pass(decoded, columns=slice(first - prompt, None)),
                    meaning,
                )

    def _padded(self) -> Iterator[_Comparison]:
        if not self.subject.takes("attention_mask"):
            raise _Skip("the model takes no attention_mask")
        ones = torch.ones_like(self.ids)
        yield _Comparison(
            Pass(self.base),
            Pass(self._run(self.ids, attention_mask=ones)),
            "an attention_mask of ones changes what it predicts",
        )
        width = self.length
        # Rows of several lengths, and one row alone: some models mask padding only in batches.
        for kept in ([width - 1 - (row * width) // (2 * self.rows) for row in range(self.rows)], [width // 2]):
            for side in ("right", "left"):
                places = [slice(count) if side == "right" else slice(width - count, width) for count in kept]
                padded = self._run_padded(places)
                for row, (count, place) in enumerate(zip(kept, places, strict=True)):
                    one = slice(row, row + 1)
                    ids = self.ids[one, :count]
                    yield _Comparison(
                        Pass(self._run(ids, **self._positions(torch.ones_like(ids)))),
                        Pass(padded, one, place),
                        f"{width - count} tokens of padding on the {side}, with their attention_mask, change what it "
                        f"predicts from the {count} real ones{' of a single row' if len(kept) == 1 else ''}",
                    )

    # How the model is run.

    def _run(self, ids: Tensor, **inputs: Any) -> Run:
        def function() -> Tensor:
            with self.subject.mode(self.training):
                if self.training:
                    set_seed(0)  # passes of one shape then draw the same
                return self.subject.logits(ids, **inputs)

        return Run(function, (ids.shape[0], ids.shape[1]))

    def _run_padded(self, places: list[slice]) -> Run:
        """Row r of the ids, as much as place r holds, put there; padding elsewhere."""
        pad = self.subject.pad_id
        if pad is None or pad >= self.subject.vocab_size:
            pad = int(self.drawn[0])
        padded = torch.full((len(places), self.length), pad, device=self.subject.device)
        mask = torch.zeros_like(padded)
        for row, place in enumerate(places):
            padded[row, place] = self.ids[row, : place.stop - (place.start or 0)]
            mask[row, place] = 1
        return self._run(padded, attention_mask=mask, **self._positions(mask))

    def _positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Where the model takes them: counted from the first real token, as `generate` gives them."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self.subject.takes("position_ids") else {}

    def _require_cache(self) -> None:
        model = self.subject.model
        if not isinstance(model, GenerationMixin):
            raise _Skip("the model has no generate method of transformers")
        widths: list[int] = []

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = kwargs.get("input_ids", args[0] if args else None)
            widths.append(given.shape[1] if isinstance(given, Tensor) else 0)

        handle = self.subject.roots[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            self._decode(2, 2)
        finally:
            handle.remove()
        if widths[-1] > 1:
            raise _Skip("the model decodes without a cache: every step is a full pass")

    def _decode(self, prompt: int, steps: int) -> Tensor:
        """Logits [B, steps, V] of decoding with the cache after a prompt, the known tokens forced one by one."""

        def force(ids: Tensor, scores: Tensor) -> Tensor:
            forced = torch.full_like(scores, -math.inf)
            return forced.scatter(1, self.ids[:, ids.shape[1], None], 0.0)

        settings = GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=int(self.drawn[0]),
        )
        given = self.ids[:, :prompt]
        model: Any = self.subject.model
        own, model.generation_config = model.generation_config, GenerationConfig()  # its own stops early, for one
        try:
            with self.subject.mode(training=False):
                output = model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    generation_config=settings,
                    logits_processor=LogitsProcessorList([force]),
                )
        finally:
            model.generation_config = own
        logits = torch.stack(output.logits, dim=1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _to_ids(self, picks: Tensor) -> Tensor:
        return self.drawn[picks].to(self.subject.device)

    def _others(self, picks: Tensor) -> Tensor:
        """At every position a random token that is another one."""
        count = len(self.drawn)
        return (picks + torch.randint(1, count, picks.shape, generator=self.generator)) % count

    # How a result is made.

    def _compare(self, name: str, comparisons: Iterator[_Comparison], wrong: Verdict = "leak") -> Result:
        findings: list[_Finding] = []
        stopped, previous = "", self.base
        try:
            for comparison in comparisons:
                if previous not in (self.base, comparison.theirs.run):
                    previous.forget()  # logits of a large vocabulary are large
                previous = comparison.theirs.run
                tolerance = self._tolerance(comparison)
                moved = change(comparison.ours.logits(), comparison.theirs.logits()) / self.scale
                findings.append(_Finding(moved, tolerance, comparison))
        except Exception as error:
            stopped = str(error) if isinstance(error, _Skip | InputError) else one_line(error)
            if findings:
                stopped = f"after {len(findings)} comparisons {stopped}"
        findings.sort(key=_Finding.excess, reverse=True)
        if not findings or findings[0].excess() <= 1:
            doubtful = max((one.change for one in findings if one.comparison.of_one_shape), default=0.0)
            if doubtful > EXACT and not stopped:
                stopped = f"it moved by {doubtful:.1g} standard deviations of the logits, {self._coarse}"
            if stopped:
                return Result(name, "skipped", meaning=stopped)
            return Result(name, "ok", findings[0].change, findings[0].tolerance)
        worst = findings[0]
        if (again := self._unsteadiness(worst)) > worst.tolerance:
            return Result(name, "skipped", meaning=self._not_deterministic(again))
        location = self._first_location(finding.comparison for finding in findings[:ATTEMPTS] if finding.excess() > 1)
        return Result(name, wrong, worst.change, worst.tolerance, meaning=worst.comparison.meaning, location=location)

    def _unsteadiness(self, finding: _Finding) -> float:
        """By how much the change is another one when both passes are run again."""
        ours, theirs = finding.comparison.ours.run_again(), finding.comparison.theirs.run_again()
        again = change(ours, theirs) / self.scale
        return 0.0 if again == finding.change else abs(again - finding.change)

    def _tolerance(self, comparison: _Comparison) -> float:
        """Tight where the passes have one shape; else what rounding may do in this model."""
        if comparison.of_one_shape or self.rounding is None:
            return self.tolerance
        tolerance = max(self.tolerance, ROUNDING_FACTOR * self.rounding)
        if tolerance > TOO_COARSE:
            raise _Skip(f"it may move by {tolerance:.1g} standard deviations of the logits, {self._coarse}")
        return tolerance

    @property
    def _coarse(self) -> str:
        half = self.dtype in (torch.float16, torch.bfloat16)
        advice = "check it in float32" if half else "a model with smaller weights or fewer layers could be checked"
        return f"which in {str(self.dtype)[6:]} may be a leak or nothing but rounding; {advice}"

    def _first_location(self, comparisons: Iterable[_Comparison]) -> Location | None:
        for comparison in comparisons:
            threshold = self._tolerance(comparison) / 10
            try:
                with _eagerly():
                    location = locate(self.names, comparison.ours, comparison.theirs, threshold)
            except Exception:  # a scripted module takes no hooks; the finding stands without its place
                return None
            if location:
                return location
        return None

    def _gradient(self) -> Result:
        """Derivatives of logits towards all that they must not see: later tokens, other rows."""
        tolerance = self.tolerance * GRADIENT_SHARE
        try:
            with self.subject.mode(training=False), _eagerly():
                worst = self._largest_derivative()
        except (_Skip, InputError) as reason:
            return Result("gradient", "skipped", meaning=str(reason))
        except RuntimeError as error:  # of autograd: an operation without a derivative, or changed in place
            return Result("gradient", "skipped", meaning=one_line(error))
        unit = "of the largest derivative"
        if worst.share <= tolerance:
            return Result("gradient", "ok", worst.share, tolerance, unit)
        location = self._first_location(worst.comparisons)
        return Result("gradient", "leak", worst.share, tolerance, unit, worst.meaning, location)

    @torch.enable_grad()
    def _largest_derivative(self) -> _Derivative:
        """Towards what must not be seen."""
        leaves: list[Tensor] = []

        def as_leaf(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor) or self.length not in output.shape:
                return None
            leaves.append(output.detach().requires_grad_())
            return leaves[-1].clone()  # models scale embeddings in place

        with hooked(self.embeddings, as_leaf):
            logits = self.subject.logits(self.ids)
        if not leaves:
            raise _Skip("no nn.Embedding takes the tokens")
        if not logits.requires_grad:
            raise _Skip("no gradient flows from the logits to the embeddings")
        logits = torch.where(logits.isfinite(), logits, torch.zeros((), device=logits.device))
        weighted = logits * torch.randn(logits.shape, generator=self.generator).to(logits.device)
        found: list[_Derivative] = []
        for row, comparison in enumerate(self._replaced_rows()):
            others = [EVERYTHING if other != row else slice(0) for other in range(self.rows)]
            found.append(
                _Derivative(
                    self._forbidden_share(weighted[row].sum(), leaves, others),
                    f"what it predicts in row {row} has a derivative towards other rows",
                    [comparison],
                )
            )
        over_rows = max(found, key=lambda derivative: derivative.share)
        if over_rows.share > self.tolerance * GRADIENT_SHARE:  # below, it would be taken for one over time
            return over_rows
        # A cut of its own in every row: all positions in T / B backward passes.
        for start in range(1, self.length, self.rows):
            cuts = [min(start + row, self.length - 1) for row in range(self.rows)]
            seen = torch.stack([weighted[row, :cut].sum() for row, cut in enumerate(cuts)]).sum()
            later = [slice(cut, None) for cut in cuts]
            found.append(
                _Derivative(
                    self._forbidden_share(seen, leaves, later),
                    f"what it predicts has a derivative towards later tokens (most at cuts {cuts[0]} to {cuts[-1]})",
                    [self._other_future(self.base, self.picks, cut) for cut in cuts],
                )
            )
        return max(found, key=lambda derivative: derivative.share)

    def _forbidden_share(self, seen: Tensor, leaves: list[Tensor], forbidden: list[slice]) -> float:
        """Largest derivative towards forbidden positions, by row, in parts of the largest of all."""
        largest = within = 0.0
        for gradient in torch.autograd.grad(seen, leaves, retain_graph=True, allow_unused=True):
            if gradient is None:
                continue
            # [T, B, D], or, of positions that the rows share, [T, D] or [T, 1, D]
            gradient = gradient.movedim(gradient.shape.index(self.length), 0)
            largest = max(largest, _magnitude(gradient))
            if gradient.ndim > 2 and gradient.shape[1] == self.rows:
                parts = [gradient[places, row] for row, places in enumerate(forbidden)]
            else:  # forbidden is what is so in all rows
                parts = [gradient[max(places.start or 0 for places in forbidden) or self.length :]]
            within = max(within, *(_magnitude(part) for part in parts))
        if largest == 0.0:
            raise _Skip("no gradient flows from the logits to the embeddings")
        if not math.isfinite(largest):
            raise _Skip("its derivatives are not finite")
        return within / largest


def _magnitude(tensor: Tensor) -> float:
    """Largest absolute value; infinite where there is NaN."""
    return change(tensor, torch.zeros_like(tensor))


@contextmanager
def _eagerly() -> Iterator[None]:
    """Compiled modules run as they were written, so that hooks inside them are called."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _least_precise(subject: Subject) -> torch.dtype:
    """The coarsest number format in play: of the weights, of the logits, or TF32 (with the digits of float16)."""
    formats = {subject.logits_dtype, *(weight.dtype for weight in subject.parameters())}
    if subject.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        formats.add(torch.float16)
    known = [dtype for dtype in TOLERANCES if dtype in formats]
    return max(known, key=lambda dtype: TOLERANCES[dtype], default=torch.float32)
