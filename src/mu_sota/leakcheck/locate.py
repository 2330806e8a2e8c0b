"""Where a leak arises: the first module whose output moved although its input did not.

Two passes that should agree are run with hooks on every module. Tensors are compared where the passes should agree
(earlier positions, the same row); a tensor's batch and time axes are recognised by their sizes, so a check takes sizes
that no weight has.

Legend: B batch, T time.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mu_sota.common.hooks import attached, without_compilation

from .logits import change
from .passes import EVERYTHING, Pass


@dataclass(frozen=True)
class Location:
    """Where a leak arises.

    Args:
        module: qualified name of the innermost module that turns inputs that did not move into outputs that did; empty
            for the model itself.
        kind: its class.
        after: its last part whose output had not moved, if it has parts.
        before: its first part whose input had moved.
        summary: a part whose output has no position (or no row) of its own and moved, as a mean over the sequence has.
        path: modules that carry the change from there to the logits.
    """

    module: str
    kind: str
    after: str | None
    before: str | None
    summary: str | None
    path: list[str]

    def sentence(self) -> str:
        """For a reader: the module, the parts between which it happens, and the path to the logits."""
        origin = f"{self.module} ({self.kind})" if self.module else f"the model's own forward ({self.kind})"
        between = [f"after {self.after}"] * bool(self.after) + [f"before {self.before}"] * bool(self.before)
        if self.summary:
            between.append(f"by way of {self.summary}, whose output has no position of its own")
        inside = f", {', '.join(between)}" if between else ""
        return f"arises in {origin}{inside}; path: {' -> '.join([*self.path, 'logits'])}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Part(NamedTuple):
    """The compared part of an input or output.

    Args:
        name: argument, index or key of the tensor.
        value: the compared rows and positions.
        has_position: the tensor has every axis along which the passes are compared.
    """

    name: str
    value: Tensor
    has_position: bool


@dataclass
class _Event:
    """One call of one module; `start` is the number of calls that had ended when it began."""

    name: str
    kind: str
    start: int
    inputs: list[_Part]
    outputs: list[_Part] = field(default_factory=list)


class _Moved(NamedTuple):
    """Tensors with positions moved; tensors without positions (summaries) moved."""

    with_position: bool
    summary: bool


NOT_MOVED = _Moved(False, False)


class _Call(NamedTuple):
    """A call that both passes make, and the differences between them."""

    event: _Event
    inputs: _Moved
    outputs: _Moved


def locate(names: Mapping[nn.Module, str], ours: Pass, theirs: Pass, threshold: float) -> Location | None:
    """The first module, in the order of execution, that makes two passes differ; None if no single one can be named.

    Args:
        names: the modules that may be named, with their names; that of the model itself is empty.
        ours, theirs: the passes, with the parts that should be equal.
        threshold: a tensor has moved if it changed by more than so many of its standard deviations.
    """
    with without_compilation():
        known = dict(_counted(_record(names, ours)))
        events = _record(names, theirs)
    calls = []
    for key, event in _counted(events):
        partner = known.get(key)
        inputs = _moved(partner.inputs, event.inputs, threshold) if partner else NOT_MOVED
        outputs = _moved(partner.outputs, event.outputs, threshold) if partner else NOT_MOVED
        calls.append(_Call(event, inputs, outputs))
    for index, call in enumerate(calls):
        if call.outputs.with_position and not any(call.inputs):
            return _location(calls, index)
    return None


def _location(calls: list[_Call], index: int) -> Location:
    """The origin, which is the call of this index."""
    origin = calls[index].event
    parts = list(_parts(calls, origin.start, index))
    first = next((part for part in parts if calls[part].inputs.with_position), None)
    clean = [part for part in parts if (first is None or part < first) and not calls[part].outputs.with_position]
    before_first = calls[origin.start : index if first is None else calls[first].event.start]
    summary = next((call.event.name for call in before_first if call.outputs.summary and not any(call.inputs)), None)
    return Location(
        module=origin.name,
        kind=origin.kind,
        after=_within(calls[clean[-1]].event.name, origin.name) if clean else None,
        before=_within(calls[first].event.name, origin.name) if first is not None else None,
        summary=summary,
        path=[origin.name or "(model)", *_folded(_carriers(calls, index))],
    )


def _record(names: Mapping[nn.Module, str], one: Pass) -> list[_Event]:
    """The calls of a pass in the order in which they ended; of a model called several times, its last call."""
    ended: list[_Event] = []
    running: list[_Event] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        if names[module] == "":
            ended.clear()
            running.clear()
        inputs = dict(enumerate(args)) | kwargs
        # Copied now: the module may change its inputs in place.
        running.append(_Event(names[module], type(module).__name__, len(ended), list(_cut(inputs, one))))

    def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        event = running.pop()
        event.outputs = list(_cut(output, one))
        ended.append(event)

    def hooks() -> Iterator[RemovableHandle]:
        for module in names:
            yield module.register_forward_pre_hook(begin, with_kwargs=True)
            yield module.register_forward_hook(end, with_kwargs=True)

    with attached(hooks()):
        one.run()
    return ended


def _counted(events: list[_Event]) -> Iterator[tuple[tuple[str, int], _Event]]:
    """Each event by its module and the number of its earlier calls: a shared module runs more than once."""
    counts: dict[str, int] = {}
    for event in events:
        count = counts.get(event.name, 0)
        counts[event.name] = count + 1
        yield (event.name, count), event


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")
    elif is_dataclass(value) or isinstance(value, SimpleNamespace):
        yield from _tensors(vars(value), name)


def _cut(value: Any, one: Pass) -> Iterator[_Part]:
    """Copies of the compared parts of all tensors in a module's inputs or outputs."""
    rows, columns = one.run.size
    for name, tensor in _tensors(value):
        if tensor.ndim and tensor.shape[0] == rows * columns and rows > 1 and columns > 1:  # as experts flatten it
            tensor = tensor.unflatten(0, (rows, columns))
        times = [axis for axis, size in enumerate(tensor.shape) if size == columns]
        batch = next((axis for axis, size in enumerate(tensor.shape) if size == rows and axis not in times), None)
        has_position = bool(times) and (one.rows == EVERYTHING or batch is not None)
        if columns > 1:  # a step of decoding has the one position
            for axis in times:
                tensor = tensor[(EVERYTHING,) * axis + (one.columns,)]
        if batch is not None and rows > 1:
            tensor = tensor[(EVERYTHING,) * batch + (one.rows,)]
        yield _Part(name, tensor.detach().clone(), has_position)


def _moved(ours: list[_Part], theirs: list[_Part], threshold: float) -> _Moved:
    found = {True: False, False: False}
    known = {part.name: part for part in ours}
    for other in theirs:
        one = known.get(other.name)
        if one and _comparable(one.value, other.value):
            found[one.has_position and other.has_position] |= _differ(one.value, other.value, threshold)
    return _Moved(found[True], found[False])


def _comparable(ours: Tensor, theirs: Tensor) -> bool:
    """One shape, or one row for all where the other has each; not, for one, keys and values of another length."""
    if ours.dtype != theirs.dtype or ours.ndim != theirs.ndim or ours.shape[1:] != theirs.shape[1:]:
        return False
    return ours.shape == theirs.shape or 1 in (ours.shape[0], theirs.shape[0])


def _differ(ours: Tensor, theirs: Tensor, threshold: float) -> bool:
    ours, theirs = torch.broadcast_tensors(ours, theirs)
    if ours.is_complex():
        ours, theirs = torch.view_as_real(ours), torch.view_as_real(theirs)
    if not ours.is_floating_point():
        return not torch.equal(ours, theirs)
    ours, theirs = ours.double(), theirs.double()
    finite = ours[ours.isfinite()]
    deviation = finite.std().item() if finite.numel() > 1 else 0.0
    return change(ours, theirs) > threshold * max(deviation, 1e-12)


def _parts(calls: list[_Call], start: int, stop: int) -> Iterator[int]:
    """Indices, in order, of the outermost calls in [start, stop): the parts of an enclosing one."""
    found = []
    index = stop - 1
    while index >= start:
        found.append(index)
        index = calls[index].event.start - 1
    yield from reversed(found)


def _carriers(calls: list[_Call], index: int) -> list[str]:
    """From a call outwards, at each enclosing level, the later parts that take the change in and pass it on."""
    names: list[str] = []
    while index < len(calls):
        outer = next((k for k in range(index + 1, len(calls)) if calls[k].event.start <= index), len(calls))
        parts = (calls[part] for part in _parts(calls, index + 1, outer))
        names += [part.event.name for part in parts if any(part.inputs) and any(part.outputs)]
        index = outer
    return names


def _folded(path: list[str]) -> list[str]:
    """`h.1, h.2, ..., h.5` as `h.1 ... h.5`."""
    folded: list[str] = []
    for name in path:
        stem, number = _numbered(name)
        if folded and number is not None:
            last_stem, last = _numbered(folded[-1].rpartition(" ... ")[2])
            if last_stem == stem and last is not None and number == last + 1:
                folded[-1] = f"{folded[-1].partition(' ... ')[0]} ... {name}"
                continue
        folded.append(name)
    return folded


def _numbered(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*\.)(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def _within(name: str, outer: str) -> str:
    """A part's name relative to the module that contains it."""
    return name.removeprefix(f"{outer}.")
