"""A snapshot of all that a model holds: attributes, tensors, containers and random generators.

A cache is often a buffer together with a plain value that says how far it is filled. So all of it is restored together,
or nothing is.
"""

import functools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

HOOKS = frozenset(name for name in vars(nn.Module()) if "hooks" in name)
"""Attributes of a module that a check itself changes while it looks into the model."""

ATOMS = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, torch.Size)
OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, property, classmethod, staticmethod)
"""Objects without a state that could be restored: a function's closure, for one, is out of reach."""

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

_Restore: TypeAlias = Callable[[], object]
_Kept: TypeAlias = tuple[list[_Restore], Iterable[object]]
"""How an object is restored, and the objects that it holds."""


class Snapshot:
    """The state of some objects and of all that can be reached from them.

    Attributes of modules and of plain objects, and of their classes where those are data; entries of lists,
    dictionaries, sets and deques; contents, shapes and flags of tensors and arrays; random generators. Out of reach are
    closures, globals and `functools.lru_cache`.

    Args:
        holders: modules, objects, or functions (of which only the object of a bound method is kept).
        hooks: the hooks of modules belong to it.
        earlier: another snapshot of the same model; contents that are equal are held in memory only once.
    """

    def __init__(self, holders: Iterable[object], hooks: bool = False, earlier: "Snapshot | None" = None) -> None:
        self._left_out = frozenset[str]() if hooks else HOOKS
        self._visited: dict[int, object] = {}  # the objects too, so that no other gets their id
        self._restores: list[_Restore] = []
        self._contents: dict[tuple[torch.device, int], Tensor] = {}
        self._earlier = earlier._contents if earlier else {}
        waiting = list(holders)
        while waiting:
            one = waiting.pop()
            if isinstance(one, ATOMS) or id(one) in self._visited:
                continue
            self._visited[id(one)] = one
            restores, held = self._keep(one)
            self._restores += restores
            waiting.extend(held)
        self._earlier = {}

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything. Only what has changed is written to."""
        for restore in self._restores:
            restore()

    def reseed(self, seed: int) -> None:
        """Seed the random generators that the model owns; `restore` brings their states back."""
        for generator in self._visited.values():
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            elif isinstance(generator, np.random.Generator):
                bits: Any = generator.bit_generator
                bits.state = type(bits)(seed).state
            elif isinstance(generator, np.random.RandomState | random.Random):
                generator.seed(seed)

    def _keep(self, one: object) -> _Kept:
        if isinstance(one, Tensor):
            return self._keep_tensor(one)
        if isinstance(one, np.ndarray):
            return _keep_array(one)
        if isinstance(one, GENERATORS):
            return [_generator_restore(one)], []
        if isinstance(one, types.MethodType):
            return [], [one.__self__]
        if isinstance(one, functools.partial):
            return [], [one.func, *one.args, *one.keywords.values()]
        if isinstance(one, OPAQUE):
            return [], []
        parts: list[_Kept] = []
        if isinstance(one, dict | list | set | deque | bytearray):
            parts.append(_keep_container(one))
        elif isinstance(one, tuple | frozenset):
            parts.append(([], one))
        if isinstance(one, torch.jit.ScriptModule):
            parts.append(_keep_script(one))
        elif isinstance(one, nn.Module) or not _is_library(type(one)):
            left_out = self._left_out if isinstance(one, nn.Module) else frozenset[str]()
            parts += [_keep_attributes(one, left_out), _keep_slots(one), *self._keep_classes(type(one))]
        return [restore for restores, _ in parts for restore in restores], [item for _, held in parts for item in held]

    def _keep_classes(self, kind: type) -> Iterator[_Kept]:
        """Data of the classes that somebody wrote: a cache that all objects of a class share."""
        for base in kind.__mro__:
            if id(base) not in self._visited and not _is_library(base):
                self._visited[id(base)] = base
                yield _keep_class(base)

    def _keep_tensor(self, one: Tensor) -> _Kept:
        if torch.nn.parameter.is_lazy(one) or one.is_meta:
            return [], []
        alias = one.detach()
        leaf, requires_grad = one.is_leaf, one.requires_grad
        gradient = one.grad if leaf else None

        def restore() -> None:
            if leaf and one.grad_fn is not None:  # a buffer that was added to while gradients were on
                one.detach_()
            if leaf and one.requires_grad != requires_grad:
                one.requires_grad_(requires_grad)
            if not _same_storage(one, alias):
                one.data = alias
            if leaf and one.grad is not gradient:
                one.grad = gradient

        held = [vars(one), *([gradient] if gradient is not None else [])]
        return [restore, *self._keep_contents(alias)], held

    def _keep_contents(self, alias: Tensor) -> list[_Restore]:
        """The full storage, once: views and expanded tensors share theirs."""
        try:
            storage = alias.untyped_storage()
            key = (alias.device, storage.data_ptr())
        except (NotImplementedError, RuntimeError):  # sparse, or a format that has no storage of its own
            return [functools.partial(alias.copy_, alias.clone())]
        if key in self._contents or not storage.nbytes():
            return []
        size = storage.nbytes()
        known = self._earlier.get(key)
        now = _words(alias, storage)
        kept = known if known is not None and torch.equal(known, now) else now.clone()
        self._contents[key] = kept

        def restore() -> None:
            if storage.nbytes() != size:
                storage.resize_(size)
            words = now if now.data_ptr() == storage.data_ptr() else _words(alias, storage)
            if not torch.equal(words, kept):
                words.copy_(kept)

        return [restore]


def _keep_container(one: Any) -> _Kept:
    kept = list(one.items()) if isinstance(one, dict) else list(one)
    fill = _filler(one)

    def restore() -> None:
        if not one and not kept:  # as most are
            return
        now = list(one.items()) if isinstance(one, dict) else list(one)
        if not _same_objects(kept, now):
            fill(kept)

    if isinstance(one, dict):
        return [restore], [value for _, value in kept]
    return [restore], [] if isinstance(one, bytearray) else kept


def _filler(one: Any) -> Callable[[list[Any]], None]:
    """Refills a container. By the base class: a derived one may forbid or log it."""
    base: Any = next(kind for kind in (OrderedDict, dict, list, set, deque, bytearray) if isinstance(one, kind))

    def fill(entries: list[Any]) -> None:
        base.clear(one)
        if issubclass(base, dict):
            for key, value in entries:
                base.__setitem__(one, key, value)
        elif base is set:
            one.update(entries)
        else:
            base.extend(one, entries)

    return fill


def _same_objects(kept: list[Any], now: list[Any]) -> bool:
    """The same objects in the same order; of pairs, their parts."""
    if len(kept) != len(now):
        return False
    for ours, theirs in zip(kept, now, strict=True):
        if ours is not theirs and not (type(ours) is type(theirs) is tuple and _same_pair(ours, theirs)):
            return False
    return True


def _same_pair(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    return len(ours) == len(theirs) == 2 and ours[0] is theirs[0] and ours[1] is theirs[1]


def _keep_attributes(one: object, left_out: frozenset[str]) -> _Kept:
    attributes = getattr(one, "__dict__", None)
    if not isinstance(attributes, dict):
        return [], []
    kept = {name: value for name, value in attributes.items() if name not in left_out}

    def restore() -> None:
        for name in [name for name in attributes if name not in kept and name not in left_out]:
            del attributes[name]
        for name, value in kept.items():
            if name not in attributes or attributes[name] is not value:
                attributes[name] = value

    return [restore], kept.values()


def _keep_slots(one: object) -> _Kept:
    slots = {name for kind in type(one).__mro__ for name in _slots(kind)}
    filled = {name: getattr(one, name) for name in slots if hasattr(one, name)}

    def restore() -> None:
        for name in slots:
            if name not in filled and hasattr(one, name):
                object.__delattr__(one, name)
            elif name in filled and getattr(one, name, None) is not filled[name]:
                object.__setattr__(one, name, filled[name])

    return [restore] if slots else [], filled.values()


def _slots(kind: type) -> Iterator[str]:
    slots = vars(kind).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if name not in ("__dict__", "__weakref__") and isinstance(vars(kind).get(name), types.MemberDescriptorType):
            yield name


def _keep_class(kind: type) -> _Kept:
    kept = dict(_data(kind))

    def restore() -> None:
        now = dict(_data(kind))
        for name in now.keys() - kept.keys():
            delattr(kind, name)
        for name, value in kept.items():
            if name not in now or now[name] is not value:
                setattr(kind, name, value)

    return [restore], kept.values()


def _data(kind: type) -> Iterator[tuple[str, object]]:
    """Attributes of a class that are neither methods nor Python's own."""
    for name, value in vars(kind).items():
        dunder = name.startswith("__") and name.endswith("__")
        if not dunder and not isinstance(value, OPAQUE) and not hasattr(value, "__get__") and name != "_abc_impl":
            yield name, value


def _is_library(kind: type) -> bool:
    """Classes of Python and of PyTorch, which keep nothing that a forward pass would compute with."""
    package = kind.__module__.partition(".")[0]
    return package in ("builtins", "collections", "abc", "typing", "threading", "torch", "numpy", "enum", "logging")


def _keep_script(one: Any) -> _Kept:
    """A compiled module, whose state only its own accessors reach."""
    training = getattr(one, "training", None)
    tensors = dict([*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)])

    def restore() -> None:
        if training is not None and one.training != training:
            one.training = training
        for name, tensor in tensors.items():
            if getattr(one, name).data_ptr() != tensor.data_ptr():
                setattr(one, name, tensor)

    return [restore], [*tensors.values(), *one.children()]


def _generator_restore(one: Any) -> _Restore:
    if isinstance(one, np.random.Generator):
        bits: Any = one.bit_generator
        return functools.partial(setattr, bits, "state", bits.state)
    if isinstance(one, random.Random):
        return functools.partial(one.setstate, one.getstate())
    return functools.partial(one.set_state, one.get_state())  # PyTorch's, and NumPy's older one


def _keep_array(one: Any) -> _Kept:
    if one.dtype.hasobject or not one.flags.writeable:
        return [], []
    kept = one.copy()

    def restore() -> None:
        if one.tobytes() != kept.tobytes():
            np.copyto(one, kept)

    return [restore], []


def _words(alias: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """A storage as integers, which NaN does not keep from being compared; autograd does not notice writes to it."""
    flat = torch.empty(0, dtype=torch.uint8, device=alias.device).set_(storage)
    return flat.view(torch.int64) if len(flat) % 8 == 0 else flat


def _same_storage(one: Tensor, alias: Tensor) -> bool:
    try:
        return one.data_ptr() == alias.data_ptr() and one.shape == alias.shape and one.stride() == alias.stride()
    except (NotImplementedError, RuntimeError):
        return True
