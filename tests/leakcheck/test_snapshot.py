"""A check restores everything that a model holds, and every pass starts with the same state."""

import contextlib
import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import VOCABULARY, WIDTH, Attention, TinyLM, planted
from torch import Tensor, nn

from mu_sota import InputError
from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.snapshot import Snapshot

IDS = torch.arange(40).view(2, 20)


def outputs(model: Any) -> list[Tensor]:
    """What a model gives in eval and in training mode, twice each, as what is carried on shows the second time."""
    torch.manual_seed(3)
    with torch.no_grad():
        return [model.train(training)(ids) for training in (False, True) for ids in (IDS[:, :9], IDS)]


class Angles(nn.Module):
    """The minimal case: a buffer, and a plain number that says how far it is filled."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(256, WIDTH), persistent=False)
        self.n = 0

    def forward(self, state: Tensor) -> Tensor:
        length = state.shape[1]
        if length > self.n:
            self.cache[:length] = torch.cos(torch.arange(length)[:, None] / torch.arange(1, WIDTH + 1))
            self.n = length
        return state * self.cache[:length]


class Grown(nn.Module):
    """Nothing at first, then a tensor that is made anew for a longer text and filled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.angles: Tensor | None = None

    def forward(self, state: Tensor) -> Tensor:
        if self.angles is None or len(self.angles) < state.shape[1]:
            self.angles = torch.zeros(state.shape[1], 1)
            self.angles += torch.arange(state.shape[1])[:, None]
        return state + 0.01 * self.angles[: state.shape[1]]


class Registers(nn.Module):
    """Registers its buffer in the forward pass."""

    late: Tensor

    def forward(self, state: Tensor) -> Tensor:
        if "late" not in self._buffers:
            self.register_buffer("late", state.detach().mean((0, 1)), persistent=False)
        return state + self.late


class Slotted:
    __slots__ = ("table", "uses")
    table: Tensor

    def __init__(self) -> None:
        self.uses = 0


class Plain:
    """A cache that is no module, with containers of all kinds."""

    def __init__(self) -> None:
        self.by_length: OrderedDict[int, Tensor] = OrderedDict()
        self.log: list[Any] = [1, [2]]
        self.seen: set[int] = set()
        self.last: deque[int] = deque(maxlen=3)
        self.slotted = (Slotted(),)
        self.array = np.zeros(3)


def everything() -> nn.Module:
    """Counts and remembers in every place there is, its class too, and computes with it."""

    class Everything(nn.Module):
        calls: ClassVar[int] = 0
        lengths: ClassVar[list[int]] = []

        def __init__(self) -> None:
            super().__init__()
            self.plain = Plain()
            self.add = functools.partial(self.plain.log.append)
            self.weight = nn.Parameter(torch.ones(WIDTH))
            self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)

        def forward(self, state: Tensor) -> Tensor:
            plain, length = self.plain, state.shape[1]
            offset = float(plain.array.sum()) + float(self.frozen.sum()) + plain.slotted[0].uses
            offset += len(plain.log) + len(plain.log[1]) + len(plain.seen) + sum(plain.last)
            offset += len(self.lengths) + self.calls
            plain.by_length[length] = state.detach()
            plain.by_length.move_to_end(length, last=False)
            self.add(length)
            plain.log[1].append(length)
            plain.seen.add(length)
            plain.last.append(length)
            plain.slotted[0].uses += 1
            plain.slotted[0].table = state.detach()
            plain.array += 1
            self.lengths.append(length)
            Everything.calls += 1
            Everything.late = offset  # type: ignore[attr-defined]
            with torch.no_grad():
                self.frozen.add_(1)
                self.weight.data = self.weight.data * 1.5
            return state * self.weight + 0.01 * offset

    return Everything()


class Draws(nn.Module):
    """Owns its random generators."""

    def __init__(self) -> None:
        super().__init__()
        self.torch = torch.Generator().manual_seed(5)
        self.numpy = np.random.default_rng(5)
        self.older = np.random.RandomState(5)
        self.python = random.Random(5)

    def forward(self, state: Tensor) -> Tensor:
        noise = torch.rand(WIDTH, generator=self.torch)
        return state + noise + float(self.numpy.random() + self.older.rand() + self.python.random())


class Running(nn.Module):
    """A running mean that is replaced, and one that is added to where gradients flow."""

    mean: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("total", torch.zeros(WIDTH))

    def forward(self, state: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * state.mean((0, 1))
        self.total.add_(state.mean((0, 1)))
        self.norm(state.transpose(1, 2))
        assert self.norm.running_mean is not None
        return state + 0.01 * self.norm.running_mean.detach() + self.total.detach()


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "angles": Angles,
    "grown": Grown,
    "registers": Registers,
    "everything": everything,
    "draws": Draws,
    "running": Running,
}


def described(model: nn.Module) -> dict[str, Any]:
    """What can be seen of a model from outside."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": [name for name, _ in model.named_buffers()],
        "ids": [id(value) for value in [*model.parameters(), *model.buffers()]],
        "flags": [(one.requires_grad, one.grad_fn, one.is_leaf) for one in [*model.parameters(), *model.buffers()]],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "modes": [module.training for module in model.modules()],
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
    }


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    return bool(ours == theirs)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", STATEFUL)
def test_check_restores_a_stateful_model(name: str, used: bool) -> None:
    """New, and after a text; a model, and what a function calls: it goes on as its twin that was not checked."""

    def make() -> TinyLM:
        torch.manual_seed(0)
        model = TinyLM(STATEFUL[name]())
        if used:
            with torch.no_grad():
                model(IDS[:1, :7])
        return model

    model, twin = make(), make()
    for asked in (model, lambda ids: 1 * model(ids)):
        before = described(model)
        check(asked)
        assert same(described(model), before)
    assert all(torch.equal(one, other) for one, other in zip(outputs(model), outputs(twin), strict=True))


def test_rotary_embeddings_keep_their_positions() -> None:
    rotary = pytest.importorskip("rotary_embedding_torch").RotaryEmbedding

    class Rotated(Attention):
        def __init__(self) -> None:
            super().__init__(0)
            self.rotary = rotary(dim=WIDTH)

        def forward(self, state: Tensor) -> Tensor:
            query, key = (
                self.rotary.rotate_queries_or_keys(part(state)[:, None])[:, 0] for part in (self.query, self.key)
            )
            return self.out((query @ key.transpose(1, 2)).tril() @ self.value(state))

    torch.manual_seed(0)
    model = TinyLM(Rotated())
    report = check(model)
    assert report.clean, report
    found = outputs(model)
    torch.manual_seed(0)
    assert all(torch.equal(one, other) for one, other in zip(found, outputs(TinyLM(Rotated())), strict=True))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("after", [1, 3, 40, 110])
def test_check_that_breaks_off_restores_the_model(error: type[BaseException], after: int) -> None:
    calls: list[int] = []  # not the model's own, so that they are not put back

    class Breaks(Angles):
        def forward(self, state: Tensor) -> Tensor:
            state = super().forward(state)
            self.left = state.detach()
            calls.append(1)
            if len(calls) == after:
                raise error("enough")
            return state

    torch.manual_seed(0)
    model: Any = TinyLM(Breaks())
    before = described(model)
    with contextlib.suppress(InputError, KeyboardInterrupt):
        check(model)
    assert len(calls) >= after
    assert same(described(model), before)
    assert not model.mixer.cache.any()
    assert model.mixer.n == 0


def test_state_is_not_carried_from_pass_to_pass() -> None:
    """What an earlier call left would differ from pass to pass, and look like a leak or like noise."""

    class Carries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last: list[Tensor] = []

        def forward(self, state: Tensor) -> Tensor:
            found = state + (self.last[-1].mean() if self.last else 0)
            self.last.append(state.detach())
            return found

    torch.manual_seed(0)
    assert check(TinyLM(Carries())).clean


def test_callable_object_is_restored() -> None:
    class Caller:
        def __init__(self) -> None:
            self.model, self.calls, self.texts = planted("no mask"), 0, dict[int, Tensor]()

        def __call__(self, ids: Tensor) -> Tensor:
            self.calls += 1
            self.texts[ids.shape[1]] = ids
            return self.model(ids)

    caller = Caller()
    assert not check(caller).clean
    assert not check(caller.__call__).clean
    assert (caller.calls, caller.texts) == (0, {})


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_script_is_restored() -> None:
    class Counts(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
            self.norm = nn.BatchNorm1d(WIDTH)
            self.register_buffer("mean", torch.zeros(WIDTH))

        def forward(self, ids: Tensor) -> Tensor:
            state = self.embedding(ids)
            self.mean = self.mean + state.mean((0, 1))
            self.norm(state.transpose(1, 2))
            return self.head(state.cumsum(1))

    script: Any = torch.jit.script(Counts())
    before = {name: value.clone() for name, value in script.state_dict().items()}
    check(script)
    assert same(script.state_dict(), before)
    assert script.training


class Node:
    """An object whose attributes a strategy chooses."""


def _node(value: Any) -> Node:
    node = Node()
    node.value = value  # type: ignore[attr-defined]
    return node


VALUES = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.none(),
        st.text(max_size=3),
        st.builds(torch.full, st.just((2, 3)), st.floats(-9, 9)),
        st.builds(np.full, st.just(3), st.floats(-9, 9)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.integers(0, 3), inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(deque, st.lists(inner, max_size=2)),
        st.builds(_node, inner),
    ),
    max_leaves=8,
)


def _plain(value: Any) -> Any:
    """As text, with the contents of everything."""
    if isinstance(value, Tensor | np.ndarray):
        return ("array", value.tolist())
    if isinstance(value, Node):
        return ("node", {name: _plain(item) for name, item in vars(value).items()})
    if isinstance(value, dict):
        return ("dict", [(key, _plain(item)) for key, item in value.items()])
    if isinstance(value, list | tuple | deque):
        return (type(value).__name__, [_plain(item) for item in value])
    return repr(value)


def _spoil(value: Any, draw: random.Random) -> None:
    """Change whatever can be changed in place, at random."""
    if isinstance(value, Tensor | np.ndarray):
        value += 1
    elif isinstance(value, Node):
        _spoil(value.value, draw)  # type: ignore[attr-defined]
        draw.choice([lambda: vars(value).clear(), lambda: vars(value).update(value=1, more=2), lambda: None])()
    elif isinstance(value, dict):
        for item in value.values():
            _spoil(item, draw)
        draw.choice([value.clear, lambda: value.update({0: "new", 9: []}), lambda: None])()
    elif isinstance(value, list | deque):
        for item in value:
            _spoil(item, draw)
        draw.choice([value.clear, value.reverse, lambda: value.append(0), lambda: None])()
    elif isinstance(value, tuple):
        for item in value:
            _spoil(item, draw)


@settings(max_examples=150)
@given(VALUES, st.integers(0, 2**31))
def test_snapshot_restores_any_nested_value(value: Any, seed: int) -> None:
    holder = _node(value)
    module = nn.Module()
    module.held = holder  # type: ignore[assignment]
    before = _plain(holder)
    state = Snapshot([module])
    draw = random.Random(seed)
    for _ in range(2):  # a state may be gone back to more than once
        _spoil(holder, draw)
        module.extra = 1  # type: ignore[assignment]
        state.restore()
        assert _plain(holder) == before
        assert not hasattr(module, "extra")
