"""Does a language model see the token it is asked to predict? Checks on any function from token ids to logits.

A check runs the model twice in ways that must not change what is compared (other later tokens, other rows, a longer
text, a cache, padding) and reports the largest change of the logits. Causality of the whole model is what is tested, as
in nanodo's tests and in "train on noise" checks, not the look of a mask.

Legend: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch

from mu_sota.common.hooks import eagerly
from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .cached_decoding import decoded
from .gradient import largest_derivative
from .logits import change
from .model_adapter import ModelUnderTest
from .padding import padded
from .passes import Comparison, Passes, Setting, seams
from .perturbation import FACTORS, SIGNS, Scaling
from .random_state import random_state_kept
from .report import STD, TABLE_HEAD, LeakError, Report, Result, Verdict
from .sizes import EVEN_CUTS, SCALED_UP_CUTS, sizes
from .time_limit import PassCounter, Progress, TimeIsUp
from .verdict import Comparer, Finding, Group

__all__ = ["STD", "TABLE_HEAD", "LeakError", "Progress", "Report", "Result", "assert_causal", "check"]


GRADIENT_SHARE = 1e-2
"""The gradient check's tolerance in parts of the others': a masked softmax gives a derivative of exactly 0."""


def assert_causal(
    model: Callable[..., Any],
    vocab_size: int | None = None,
    *,
    length: int | None = None,
    rows: int | None = None,
    device: torch.device | str | None = None,
    output: str | int | None = None,
    time_limit: float | None = None,
    seen: Callable[[Result], None] = lambda result: None,
    progress: Progress = lambda done, expected, check: None,
) -> Report:
    """One line for a test suite: raise unless `check` finds the model clean; its arguments and its report.

    Raises:
        LeakError: what was found, by how much, what it means, and where it arises.
        InputError: the model could not be checked.
    """
    __tracebackhide__ = True  # pytest then shows the test's own line
    report = check(
        model,
        vocab_size,
        length=length,
        rows=rows,
        device=device,
        output=output,
        time_limit=time_limit,
        seen=seen,
        progress=progress,
    )
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
    output: str | int | None = None,
    time_limit: float | None = None,
    seen: Callable[[Result], None] = lambda result: None,
    progress: Progress = lambda done, expected, check: None,
) -> Report:
    """Ask a model in every way that applies to it whether it sees what it must not see.

    Modules, also those that a function calls, are checked in eval mode, and then in training mode, where BatchNorm, for
    one, takes other statistics. While they are, weights that are all (almost) zero get some noise: a projection that
    starts at zero would hide whatever comes through it. Every pass starts from the same state and the same random seed.
    Afterwards weights, buffers, attributes, modes and random states are as they were, also if a check breaks off.

    Args:
        model: an `nn.Module` or any function from ids [B, T] to logits [B, T, V], or to something with `.logits`.
        vocab_size: ids are drawn below it. Default: from the model's configuration, else from its logits.
        length: tokens of a row. Default: 61, or what the model has positions for, or another number that it takes.
        rows: rows of the batch, at least 4. Default: 5.
        device: where ids are made. Default: where the module's parameters are.
        output: name or index of the logits in what the model returns. Default: `logits`, or the only one.
        time_limit: seconds after which no further pass begins; what was not asked by then is "not checked".
        seen: told each result as soon as it is there.
        progress: told at every pass how many were made, about how many there will be, and for which check.

    Raises:
        InputError: the model cannot be checked: it raises, gives no logits [B, T, V], gives NaN or the same logits
            whatever the tokens, or two passes over the same tokens with the same seed differ; or the time was up
            before *future* and *batch* were done.
    """
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"--time-limit (time_limit=) is {time_limit}, but must be a number of seconds above 0")
    if rows is not None and rows < 4:
        raise InputError(f"rows is {rows}, but must be at least 4")
    if length is not None and length < 2:
        raise InputError(f"length is {length}, but must be at least 2, for one token to come after another")
    counter = PassCounter(time_limit, progress)
    with random_state_kept():
        tested = ModelUnderTest(model, vocab_size, device, length=length, output=output)
        if length is not None and tested.positions is not None and length > tested.positions:
            raise InputError(f"length is {length}, but the model has {tested.positions} positions; give at most that")
        with tested.kept(), tested.zeros_perturbed():
            base, even = sizes(tested, rows, length)
            checks = _Checks(tested, base, even, counter)
            report = Report(
                model=tested.name,
                vocab_size=tested.vocab_size,
                rows=base.rows,
                length=base.length,
                dtype=str(checks.comparer.dtype)[6:],
                device=str(tested.device),
                rounding=checks.comparer.rounding,
                draws=checks.draws,
            )
            for result in checks.run():
                report.results.append(result)
                seen(result)
    return report


class _Checks:
    """The checks on one tested, and what they share: passes in eval mode, tolerances, names of modules."""

    def __init__(self, tested: ModelUnderTest, base: Setting, even: Setting, counter: PassCounter) -> None:
        self.tested, self.even, self.counter = tested, even, counter
        counter.expected = _expected(base, even, bool(tested.roots))
        counter.begin_check("future")
        self.passes = passes = Passes(tested, base, counter)
        self.comparer = Comparer(tested, passes)
        logits, scale = passes.base.logits, passes.scale
        others = passes.run(passes.to_ids(passes.other_tokens(passes.indices)))()
        if change(others, logits) <= self.comparer.tolerance * scale:
            raise InputError(
                "the model gives the same logits whatever the tokens, so no leak could show; "
                "give it weights through which they can show"
            )
        self.draws = any(
            change(passes.run(passes.ids, seed=seed)(), logits) > self.comparer.tolerance / 10 * scale
            for seed in (1, 2)
        )

    def run(self) -> Iterator[Result]:
        """All in eval mode; those of one shape also with louder weights and in training mode, if there are modules."""
        passes = self.passes
        eval_mode = self._further(self.even, *([passes.setting._replace(seed=2)] if self.draws else []))
        yield self._required(
            self.comparer.compare("future", [lambda: _all_futures(passes, self.comparer.tolerance), *eval_mode[0]])
        )
        yield self._required(self.comparer.compare("batch", [passes.replaced_rows, *eval_mode[1]]))
        yield self._of_other_shapes("row alone", passes.single_rows)
        length = self._of_other_shapes(
            "length", passes.prefixes, "leak" if "future" in self.comparer.leaky else "differs"
        )
        yield length
        yield self._gradient()
        yield self._of_other_shapes("cache", lambda: decoded(passes), "differs")
        yield self._of_other_shapes("padding", lambda: padded(passes), "differs")
        if self.tested.roots:
            yield from self._scaled_up()
            yield from self._in_training()

    def _required(self, result: Result) -> Result:
        """A model that cannot be asked this has not been checked, unless it is known to leak."""
        if result.verdict == "skipped" and not self.comparer.leaky:
            raise InputError(f"the check '{result.check}' could not be finished: {result.meaning}")
        return result

    def _further(self, *settings: Setting) -> tuple[list[Group], list[Group]]:
        """*future* and *batch* in other settings: fewer cuts, but other sizes, seeds, and gradients or none."""
        made: dict[Setting, Passes] = {}

        def passes(setting: Setting) -> Passes:
            if setting not in made:
                made[setting] = Passes(self.tested, setting, self.counter)
            return made[setting]

        def futures(setting: Setting) -> Iterator[Comparison]:
            yield from passes(setting).futures_by_row(_some_cuts(setting.length), self.comparer.tolerance)

        def batch(setting: Setting) -> Iterator[Comparison]:
            yield from passes(setting).replaced_halves()

        return [partial(futures, one) for one in settings], [partial(batch, one) for one in settings]

    def _of_other_shapes(self, name: str, group: Group, wrong: Verdict = "leak") -> Result:
        if self.draws:
            why = "the model draws random numbers, and of texts of another shape it draws others"
            return Result(name, "skipped", meaning=why)
        return self.comparer.compare(name, [group], wrong, each=name == "length")

    def _scaled_up(self) -> Iterator[Result]:
        """Whether a gate that is shut hides a leak."""
        for kind in ("future", "batch"):
            name = f"{kind} (louder)"
            if kind in self.comparer.leaky:
                yield Result(name, "skipped", meaning="the leak shows at these weights already")
            else:
                yield self._with_scaled_up_weights(name)

    def _with_scaled_up_weights(self, name: str) -> Result:
        passed: list[Result] = []
        refused: list[Result] = []
        for signs in SIGNS:
            for factor in FACTORS:  # the first at which the logits are finite
                with self.tested.scaled_up(Scaling(signs, factor)):
                    result = self._at(name, Scaling(signs, factor))
                if result.verdict == "leak":
                    return result
                (refused if result.verdict == "skipped" else passed).append(result)
                if result.verdict == "ok":
                    break
                if self.counter.time_is_up:
                    return result
        if not passed:
            return refused[0]
        return max(passed, key=lambda result: result.change or 0.0)

    def _at(self, name: str, scaling: Scaling) -> Result:
        try:
            self.counter.begin_check(name)
            passes = Passes(self.tested, self.passes.setting, self.counter)
            if passes.base.logits.isposinf().any():
                raise InputError("the logits are infinite")
        except InputError as error:
            return Result(name, "skipped", meaning=f"with louder weights {error}")
        cuts = _some_cuts(passes.length, SCALED_UP_CUTS)
        group: Group = passes.replaced_halves
        if name.startswith("future"):
            group = partial(passes.futures_by_row, cuts, self.comparer.scaled_up_tolerance)
        return self.comparer.compare(name, [group], scaled_up=passes, said=f" (with louder weights: {scaling})")

    def _in_training(self) -> Iterator[Result]:
        names = "future (training)", "batch (training)"
        setting = self.passes.setting._replace(training=True, grad=True)
        self.counter.begin_check(names[0])
        try:
            passes = Passes(self.tested, setting, self.counter)
            self.comparer.require_determinism(passes)
        except TimeIsUp as error:
            yield from (Result(name, "skipped", meaning=str(error)) for name in names)
            return
        except InputError as error:
            yield Result("training", "skipped", meaning=f"in training mode {error}")
            return
        further = self._further(
            self.even._replace(training=True), setting._replace(grad=False, seed=2), setting._replace(seed=3)
        )
        yield self.comparer.compare(names[0], [lambda: _all_futures(passes, self.comparer.tolerance), *further[0]])
        yield self.comparer.compare(names[1], [passes.replaced_rows, *further[1]])

    def _gradient(self) -> Result:
        """Derivatives of logits towards all that they must not see: later tokens, other rows."""
        tolerance = self.comparer.tolerance * GRADIENT_SHARE
        self.counter.begin_check("gradient")
        try:
            with eagerly():
                worst = largest_derivative(self.passes, self.comparer.embeddings, tolerance)
        except InputError as reason:
            return Result("gradient", "skipped", meaning=str(reason))
        except Exception as error:  # of autograd, or of a backward pass of the model's own
            return Result("gradient", "skipped", meaning=one_line(error))
        unit = "of the largest derivative"
        if worst.share <= tolerance:
            return Result("gradient", "ok", worst.share, tolerance, unit)
        self.comparer.leaky.add("gradient")
        location = self.comparer.first_location(
            Finding(math.inf, self.comparer.tolerance, one) for one in worst.comparisons
        )
        return Result("gradient", "leak", worst.share, tolerance, unit, worst.meaning, location)


def _all_futures(passes: Passes, tolerance: float) -> Iterator[Comparison]:
    """Every position a cut: the seams in all rows, every other in one row."""
    at_seams = seams(passes.length)
    others = [cut for cut in range(1, passes.length) if cut not in at_seams]
    return chain(passes.futures(at_seams), passes.futures_by_row(others, tolerance))


def _some_cuts(length: int, most: int = EVEN_CUTS) -> list[int]:
    """Cuts in other settings: all of a short text; of a longer one the ends of chunks of 16 and the seams first."""
    cuts = [
        length - 1,
        *range(16, length, 16),
        *seams(length),
        *range(1, length, -(-length // most)),
        *range(1, length),
    ]
    return sorted(list(dict.fromkeys(cut for cut in cuts if 0 < cut < length))[:most])


def _expected(base: Setting, even: Setting, modules: bool) -> int:
    """About how many passes there will be."""

    def by_row(cuts: int, setting: Setting) -> int:
        return -(-cuts // setting.rows)

    at_seams = len(seams(base.length))
    every_cut = at_seams + by_row(base.length - 1 - at_seams, base)
    elsewhere = by_row(min(even.length - 1, EVEN_CUTS), even) + 2 * (even.rows - 1).bit_length()
    evaluated = 8 + every_cut + base.rows + elsewhere + 3 * base.rows + base.length // 16 + 2
    if not modules:
        return evaluated
    louder = 2 * len(SIGNS) * (1 + 6)
    again = 2 * (by_row(min(base.length - 1, EVEN_CUTS), base) + 2 * (base.rows - 1).bit_length())
    return evaluated + by_row(base.length, base) + louder + every_cut + base.rows + elsewhere + again
