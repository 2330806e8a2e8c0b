"""Does a language model see the token it is asked to predict? Checks on any function from token ids to logits.

A check runs the model twice in ways that must not change what is compared (other later tokens, other rows, a longer
text, a cache, padding) and reports the largest change of the logits. It tests the causality of the full model, as
nanodo's tests and "train on noise" checks do, not the look of a mask.

Legend: B batch, T time, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ParamSpec

import torch

from mu_sota.model.errors import InputError

from .cached_decoding import decoded
from .gradient import gradient
from .model_adapter import ModelUnderTest
from .other_shapes import prefixes, single_rows
from .padding import padded
from .passes import Comparison, Passes
from .perturbation import FACTORS, SIGNS, Scaling, perturb_zeros, scale_up
from .random_state import random_state_kept
from .replaced_tokens import every_future, futures_by_row, replaced_halves, replaced_rows
from .report import Report, Result, Verdict
from .sizes import SCALED_UP_CUTS, Setting, choose_sizes, expected_passes, some_cuts
from .time_limit import PassCounter, Progress, TimeIsUp
from .verdict import Comparer, Comparisons

_Arguments = ParamSpec("_Arguments")


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
    """Run every check that applies to a model.

    Modules, also those that a function calls, are checked in eval mode, and then in training mode, where BatchNorm, for
    one, takes other statistics. Meanwhile weights that are all (almost) zero are perturbed: a zero-initialised
    projection would hide a leak behind it. Every pass starts with the same state and the same random seed. Afterwards
    weights, buffers, attributes, modes and random states are restored, also if a check breaks off.

    Args:
        model: an `nn.Module` or any function from ids [B, T] to logits [B, T, V], or to something with `.logits`.
        vocab_size: ids are drawn below it. Default: from the model's configuration, else from its logits.
        length: tokens of a row. Default: 61, or the model's number of positions, or another number that it takes.
        rows: rows of the batch, at least 4. Default: 5.
        device: where ids are made. Default: where the module's parameters are.
        output: name or index of the logits in the model's output. Default: `logits`, or the only candidate.
        time_limit: seconds after which no further pass begins; the checks that are left are "not checked".
        seen: called with each result as soon as there is one.
        progress: called at every pass with the number of passes made, about how many there will be, and the check.

    Raises:
        InputError: the model cannot be checked: it raises, gives no logits [B, T, V], gives NaN or the same logits
            whatever the tokens, or two passes over the same tokens with the same seed differ; or the time was up
            before *future* and *batch* were done.
    """
    _require_usable(length, rows, time_limit)
    counter = PassCounter(time_limit, progress)
    with random_state_kept():
        tested = ModelUnderTest(model, vocab_size, device, length=length, output=output)
        if length is not None and tested.positions is not None and length > tested.positions:
            raise InputError(f"length is {length}, but the model has {tested.positions} positions; give at most that")
        with tested.state.kept(), tested.state.changed_weights(perturb_zeros):
            base, even = choose_sizes(tested, rows, length)
            counter.expected = expected_passes(base, even, modules=bool(tested.roots))
            counter.begin_check("future")
            passes = Passes(tested, base, counter)
            comparer = Comparer(passes)
            report = Report(
                model=tested.name,
                vocab_size=tested.vocab_size,
                rows=base.rows,
                length=base.length,
                dtype=str(comparer.tolerance.dtype)[6:],
                device=str(tested.device),
                rounding=comparer.tolerance.rounding,
                draws=comparer.draws,
            )
            for result in _all_checks(passes, even, comparer):
                report.results.append(result)
                seen(result)
    return report


def _asserting(check: Callable[_Arguments, Report]) -> Callable[_Arguments, Report]:
    @functools.wraps(check, assigned=())  # its signature
    def assert_causal(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Report:
        """One line for a test suite: `check`, with its arguments and its report, but a finding is an error.

        Raises:
            LeakError: a check found something; the message says how much, its meaning, and where it arises.
            InputError: the model could not be checked.
        """
        __tracebackhide__ = True  # pytest then shows the test's own line
        report = check(*args, **kwargs)
        report.require_clean()
        return report

    return assert_causal


assert_causal = _asserting(check)


def _require_usable(length: int | None, rows: int | None, time_limit: float | None) -> None:
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"--time-limit (time_limit=) is {time_limit}, but must be a number of seconds above 0")
    if rows is not None and rows < 4:
        raise InputError(f"rows is {rows}, but must be at least 4")
    if length is not None and length < 2:
        raise InputError(f"length is {length}, but must be at least 2, for one token to come after another")


def _all_checks(passes: Passes, even: Setting, comparer: Comparer) -> Iterator[Result]:
    """Every check, in the order of the report: at first with the weights at hand, in eval mode."""
    further = [even, *([passes.setting._replace(seed=2)] if comparer.draws else [])]
    future, batch = _future_and_batch(passes, further, comparer)
    yield _finished(comparer.compare("future", future), comparer)
    yield _finished(comparer.compare("batch", batch), comparer)
    yield comparer.compare_other_shapes("row alone", partial(single_rows, passes), "leak")
    of_length: Verdict = "leak" if "future" in comparer.leaky_checks else "differs"
    yield comparer.compare_other_shapes("length", partial(prefixes, passes), of_length, independent=True)
    yield gradient(passes, comparer)
    yield comparer.compare_other_shapes("cache", partial(decoded, passes), "differs")
    yield comparer.compare_other_shapes("padding", partial(padded, passes), "differs")
    if passes.tested.roots:
        yield _with_scaled_up_weights("future", passes, comparer)
        yield _with_scaled_up_weights("batch", passes, comparer)
        yield from _in_training_mode(passes, even, comparer)


def _future_and_batch(
    passes: Passes, further: list[Setting], comparer: Comparer
) -> tuple[Sequence[Comparisons], Sequence[Comparisons]]:
    """*future* and *batch*; then in further settings: fewer cuts, but other sizes, seeds, and gradients or none."""
    tolerance = comparer.tolerance.fixed

    @functools.cache
    def passes_in(setting: Setting) -> Passes:
        return Passes(passes.tested, setting, passes.counter)

    def some_futures(setting: Setting) -> Iterator[Comparison]:
        return futures_by_row(passes_in(setting), some_cuts(setting.length), tolerance)

    def halves(setting: Setting) -> Iterator[Comparison]:
        return replaced_halves(passes_in(setting))

    future = [partial(every_future, passes, tolerance), *(partial(some_futures, one) for one in further)]
    batch = [partial(replaced_rows, passes), *(partial(halves, one) for one in further)]
    return future, batch


def _finished(result: Result, comparer: Comparer) -> Result:
    """A model for which *future* or *batch* breaks off has not been checked, unless it is known to leak."""
    if result.verdict == "skipped" and not comparer.leaky_checks:
        raise InputError(f"the check '{result.check}' could not be finished: {result.meaning}")
    return result


def _with_scaled_up_weights(kind: str, passes: Passes, comparer: Comparer) -> Result:
    """*future* or *batch* with gates opened that are shut at the weights at hand and may hide a leak."""
    name = f"{kind} (louder)"
    if kind in comparer.leaky_checks:
        return Result(name, "skipped", meaning="the leak shows at these weights already")
    passed: list[Result] = []
    refused: list[Result] = []
    for signs in SIGNS:
        for factor in FACTORS:  # the first at which the logits are finite
            scaling = Scaling(signs, factor)
            with passes.tested.state.changed_weights(partial(scale_up, scaling=scaling)):
                result = _at_scaling(name, scaling, passes, comparer)
            if result.verdict == "leak":
                return result
            (refused if result.verdict == "skipped" else passed).append(result)
            if result.verdict == "ok":
                break
            if passes.counter.time_is_up:
                return result
    return max(passed, key=lambda result: result.change or 0.0) if passed else refused[0]


def _at_scaling(name: str, scaling: Scaling, passes: Passes, comparer: Comparer) -> Result:
    try:
        passes.counter.begin_check(name)
        scaled = Passes(passes.tested, passes.setting, passes.counter)
        if scaled.base.logits.isposinf().any():
            raise InputError("the logits are infinite")
    except InputError as error:
        return Result(name, "skipped", meaning=f"with scaled-up weights {error}")
    group: Comparisons = partial(replaced_halves, scaled)
    if name.startswith("future"):
        cuts = some_cuts(scaled.length, SCALED_UP_CUTS)
        group = partial(futures_by_row, scaled, cuts, comparer.tolerance.scaled_up)
    return comparer.compare(name, [group], scaled_up=scaled, remark=f" (with scaled-up weights: {scaling})")


def _in_training_mode(passes: Passes, even: Setting, comparer: Comparer) -> Iterator[Result]:
    """*future* and *batch* with gradients, then without; at other sizes and seeds."""
    names = "future (training)", "batch (training)"
    setting = passes.setting._replace(training=True, grad=True)
    passes.counter.begin_check(names[0])
    try:
        training = Passes(passes.tested, setting, passes.counter)
        comparer.tolerance.require_determinism(training)
    except TimeIsUp as error:
        yield from (Result(name, "skipped", meaning=str(error)) for name in names)
        return
    except InputError as error:
        yield Result("training", "skipped", meaning=f"in training mode {error}")
        return
    further = [even._replace(training=True), setting._replace(grad=False, seed=2), setting._replace(seed=3)]
    for name, groups in zip(names, _future_and_batch(training, further, comparer), strict=True):
        yield comparer.compare(name, groups)
