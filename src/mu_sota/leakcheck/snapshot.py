"""The state of a model, kept and put back: attributes, tensors, containers and random generators.

A cache is often a buffer together with a plain value that says how far it is filled. So all that a model holds is put
back together, or nothing is.
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
"""What holds no state of the model, or none that could be put back: a function's closure, for one."""

_Restore: TypeAlias = Callable[[], object]


class Snapshot:
    """What some objects hold, and all that can be reached from them, as it is now.

    Attributes of modules and of plain objects, and of their classes where those are data; entries of lists,
    dictionaries, sets and deques; contents, shapes and flags of tensors and arrays; random generators. Out of reach are
    closures, globals and `functools.lru_cache`.

    Args:
        holders: modules, objects, or functions (of which nothing is kept but what a bound method is bound to).
        hooks: whether the hooks of modules belong to it.
        earlier: another state of the same model; contents that are equal are held in memory only once.
    """

    def __init__(self, holders: Iterable[object], hooks: bool = False, earlier: "Snapshot | None" = None) -> None:
        self._left_out = frozenset[str]() if hooks else HOOKS
        self._seen: dict[int, object] = {}  # the objects too, so that no other gets their id
        self._restores: list[_Restore] = []
        self._contents: dict[tuple[torch.device, int], Tensor] = {}
        self._earlier = earlier._contents if earlier else {}
        self._generators: list[Any] = []
        waiting = list(holders)
        while waiting:
            one = waiting.pop()
            if isinstance(one, ATOMS) or id(one) in self._seen:
                continue
            self._seen[id(one)] = one
            waiting.extend(self._keep(one))
        self._earlier = {}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back. What has not changed is not written to."""
        for restore in self._restores:
            restore()

    def reseed(self, seed: int) -> None:
        """Give the random generators that the model owns other states; `restore` gives them back theirs."""
        for generator in self._generators:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            elif isinstance(generator, np.random.Generator):
                bits: Any = generator.bit_generator
                bits.state = type(bits)(seed).state
            else:  # Python's and NumPy's older one
                generator.seed(seed)

    def _keep(self, one: object) -> Iterable[object]:
        """Note how this object is put back; gives what it holds."""
        if isinstance(one, Tensor):
            return self._keep_tensor(one)
        if isinstance(one, np.ndarray):
            return self._keep_array(one)
        if isinstance(one, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            return self._keep_generator(one)
        if isinstance(one, types.MethodType):
            return [one.__self__]
        if isinstance(one, functools.partial):
            return [one.func, *one.args, *one.keywords.values()]
        if isinstance(one, OPAQUE):
            return []
        held: list[object] = []
        if isinstance(one, dict | list | set | deque | bytearray):
            held += self._keep_container(one)
        elif isinstance(one, tuple | frozenset):
            held += one
        if isinstance(one, torch.jit.ScriptModule):
            return [*held, *self._keep_script(one)]
        if not isinstance(one, nn.Module) and _is_machinery(type(one)):
            return held
        return [*held, *self._keep_attributes(one), *self._keep_class(type(one))]

    def _keep_container(self, one: Any) -> Iterable[object]:
        kept = list(one.items()) if isinstance(one, dict) else list(one)
        fill = _filler(one)

        def restore() -> None:
            if not one and not kept:  # as most are
                return
            now = list(one.items()) if isinstance(one, dict) else list(one)
            if not _same(kept, now):
                fill(kept)

        self._restores.append(restore)
        if isinstance(one, dict):
            return [value for _, value in kept]
        return [] if isinstance(one, bytearray) else kept

    def _keep_attributes(self, one: object) -> Iterable[object]:
        held: list[object] = []
        attributes = getattr(one, "__dict__", None)
        if isinstance(attributes, dict):
            left_out = self._left_out if isinstance(one, nn.Module) else frozenset[str]()
            kept = {name: value for name, value in attributes.items() if name not in left_out}

            def restore() -> None:
                for name in [name for name in attributes if name not in kept and name not in left_out]:
                    del attributes[name]
                for name, value in kept.items():
                    if name not in attributes or attributes[name] is not value:
                        attributes[name] = value

            self._restores.append(restore)
            held += kept.values()
        slots = {name for kind in type(one).__mro__ for name in _slots(kind)}
        filled = {name: getattr(one, name) for name in slots if hasattr(one, name)}

        def restore_slots() -> None:
            for name in slots:
                if name not in filled and hasattr(one, name):
                    object.__delattr__(one, name)
                elif name in filled and getattr(one, name, None) is not filled[name]:
                    object.__setattr__(one, name, filled[name])

        if slots:
            self._restores.append(restore_slots)
        return [*held, *filled.values()]

    def _keep_class(self, kind: type) -> Iterable[object]:
        """Data of the classes that somebody wrote: a cache that all objects of a class share."""
        held: list[object] = []
        for base in kind.__mro__:
            if id(base) in self._seen or _is_machinery(base):
                continue
            self._seen[id(base)] = base
            kept = dict(_data(base))

            def restore(base: type = base, kept: dict[str, object] = kept) -> None:
                now = dict(_data(base))
                for name in now.keys() - kept.keys():
                    delattr(base, name)
                for name, value in kept.items():
                    if now.get(name, restore) is not value:
                        setattr(base, name, value)

            self._restores.append(restore)
            held += kept.values()
        return held

    def _keep_script(self, one: Any) -> Iterable[object]:
        """A compiled module keeps its state where only its own accessors reach."""
        training = getattr(one, "training", None)
        tensors = dict([*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)])

        def restore() -> None:
            if training is not None and one.training != training:
                one.training = training
            for name, tensor in tensors.items():
                if getattr(one, name).data_ptr() != tensor.data_ptr():
                    setattr(one, name, tensor)

        self._restores.append(restore)
        return [*tensors.values(), *one.children()]

    def _keep_generator(self, one: Any) -> Iterable[object]:
        self._generators.append(one)
        if isinstance(one, torch.Generator):
            state = one.get_state()
            self._restores.append(functools.partial(one.set_state, state))
        elif isinstance(one, np.random.Generator):
            bits: Any = one.bit_generator
            words = bits.state

            def restore() -> None:
                bits.state = words

            self._restores.append(restore)
        elif isinstance(one, random.Random):
            position = one.getstate()
            self._restores.append(lambda: one.setstate(position))
        else:
            older = one.get_state()
            self._restores.append(lambda: one.set_state(older))
        return []

    def _keep_array(self, one: Any) -> Iterable[object]:
        if one.dtype.hasobject or not one.flags.writeable:
            return []
        kept = one.copy()

        def restore() -> None:
            if one.tobytes() != kept.tobytes():
                np.copyto(one, kept)

        self._restores.append(restore)
        return []

    def _keep_tensor(self, one: Tensor) -> Iterable[object]:
        if torch.nn.parameter.is_lazy(one) or one.is_meta:
            return []
        alias = one.detach()
        leaf, wanted = one.is_leaf, one.requires_grad
        gradient = one.grad if leaf else None

        def restore() -> None:
            if leaf and one.grad_fn is not None:  # a buffer that was added to while gradients were on
                one.detach_()
            if leaf and one.requires_grad != wanted:
                one.requires_grad_(wanted)
            if not _same_place(one, alias):
                one.data = alias
            if leaf and one.grad is not gradient:
                one.grad = gradient

        self._restores.append(restore)
        self._keep_contents(alias)
        return [vars(one), *([gradient] if gradient is not None else [])]

    def _keep_contents(self, alias: Tensor) -> None:
        """The whole storage, once: views and expanded tensors share theirs."""
        try:
            storage = alias.untyped_storage()
            place = (alias.device, storage.data_ptr())
        except (NotImplementedError, RuntimeError):  # sparse, or a format that has no storage of its own
            copy = alias.clone()
            self._restores.append(functools.partial(alias.copy_, copy))
            return
        if place in self._contents or not storage.nbytes():
            return
        size = storage.nbytes()
        known = self._earlier.get(place)
        now = _words(alias, storage)
        kept = known if known is not None and torch.equal(known, now) else now.clone()
        self._contents[place] = kept

        def restore() -> None:
            if storage.nbytes() != size:
                storage.resize_(size)
            words = now if now.data_ptr() == storage.data_ptr() else _words(alias, storage)
            if not torch.equal(words, kept):
                words.copy_(kept)

        self._restores.append(restore)


def _words(alias: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """A storage as whole numbers, for an exact comparison that NaN does not disturb; no graph or version notices."""
    flat = torch.empty(0, dtype=torch.uint8, device=alias.device).set_(storage)
    return flat.view(torch.int64) if len(flat) % 8 == 0 else flat


def _same_place(one: Tensor, alias: Tensor) -> bool:
    try:
        return one.data_ptr() == alias.data_ptr() and one.shape == alias.shape and one.stride() == alias.stride()
    except (NotImplementedError, RuntimeError):
        return True


def _same(kept: list[Any], now: list[Any]) -> bool:
    """The same objects in the same order; of pairs, their parts."""
    if len(kept) != len(now):
        return False
    for ours, theirs in zip(kept, now, strict=True):
        if ours is not theirs and not (type(ours) is type(theirs) is tuple and _same_pair(ours, theirs)):
            return False
    return True


def _same_pair(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    return len(ours) == len(theirs) == 2 and ours[0] is theirs[0] and ours[1] is theirs[1]


def _filler(one: Any) -> Callable[[list[Any]], None]:
    """How a container gets its entries back. By the base class: one that is derived may forbid or log it."""
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


def _slots(kind: type) -> Iterator[str]:
    slots = vars(kind).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if name not in ("__dict__", "__weakref__") and isinstance(vars(kind).get(name), types.MemberDescriptorType):
            yield name


def _data(kind: type) -> Iterator[tuple[str, object]]:
    """Attributes of a class that are neither methods nor Python's own."""
    for name, value in vars(kind).items():
        dunder = name.startswith("__") and name.endswith("__")
        if not dunder and not isinstance(value, OPAQUE) and not hasattr(value, "__get__") and name != "_abc_impl":
            yield name, value


def _is_machinery(kind: type) -> bool:
    """Classes of Python and of PyTorch, which keep nothing that a forward pass would compute with."""
    package = kind.__module__.partition(".")[0]
    return package in ("builtins", "collections", "abc", "typing", "threading", "torch", "numpy", "enum", "logging")
