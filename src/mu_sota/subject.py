"""A model under test: how it is called, what it can take, and passes through it that can be compared.

Legend: B batch, T time, V vocabulary.
"""

import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .errors import InputError

EVERYTHING = slice(None)

FIRST_LENGTHS = (61, 2)
"""Tokens with which a model of unknown size is tried: it may not take many, or not take few."""

ASLEEP, AWAKE = 1e-3, 0.02
"""A weight with no entry above the first passes nothing on that a check could see; noise of the second opens it.
Zero-initialised projections and gates (ReZero, LayerScale) start so, and a causal model is causal at any weights."""


class Run:
    """One run of a model: calling it runs, `logits` runs once and keeps them until it is told to forget.

    Args:
        function: gives the logits [B, T, V].
        size: (B, T) of the tensors inside the model; of its last call, if `function` calls it several times.
    """

    def __init__(self, function: Callable[[], Tensor], size: tuple[int, int]) -> None:
        self.function, self.size = function, size

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.function()

    @cached_property
    def logits(self) -> Tensor:
        return self()

    def forget(self) -> None:
        vars(self).pop("logits", None)


class Pass(NamedTuple):
    """A run, and the rows of the batch and the positions of it that are held against another pass."""

    run: Run
    rows: slice = EVERYTHING
    columns: slice = EVERYTHING

    def logits(self) -> Tensor:
        """The compared part of the logits."""
        return self.run.logits[self.rows, self.columns]

    def run_again(self) -> Tensor:
        """The same, computed anew."""
        return self.run()[self.rows, self.columns]


class Subject:
    """A model, whatever it is, as a function from ids [B, T] to logits [B, T, V].

    Args:
        model: an `nn.Module` (of `transformers` or not) called with ids, or any function of ids.
        vocab_size: ids are drawn below it. Default: what the model's configuration says, else the logits' last size.
        device: where ids are made. Default: the device of the model's weights.
        length: tokens of a row when the model is first tried. Default: many, and if that fails few.

    Raises:
        InputError: the model cannot be called with ids, or does not give logits.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        vocab_size: int | None = None,
        device: torch.device | str | None = None,
        length: int | None = None,
    ) -> None:
        if not callable(model):
            raise InputError(f"a model to check is a function from token ids to logits, but this is {model!r:.80}")
        self.model = model
        self.device = torch.device(device or "cpu")
        entry = model.forward if isinstance(model, nn.Module) else model
        self._parameters = inspect.signature(entry).parameters if _has_signature(entry) else {}
        self.vocab_size = vocab_size or 0
        self.roots = [model] if isinstance(model, nn.Module) else self._called_by_function(length)
        if device is None:
            self.device = next((weight.device for weight in self.parameters()), self.device)
        config = next((one.config for one in (model, *self.roots) if hasattr(one, "config")), None)
        text_config = getattr(config, "get_text_config", lambda: config)()
        self.special_ids = _special_ids(text_config) | _special_ids(config)
        self.pad_id = _whole_number(text_config, "pad_token_id", least=0)
        self.positions: int | None = _whole_number(text_config, "max_position_embeddings")
        if vocab_size is None:
            self.vocab_size = _whole_number(text_config, "vocab_size") or 0
        if vocab_size is None and not self.vocab_size:
            with torch.no_grad(), self.mode(training=False):
                self.vocab_size = self._first_logits(length).shape[-1]
        if self.vocab_size < 2:
            raise InputError(
                f"vocab_size is {self.vocab_size}, but a model that can leak chooses among at least 2 tokens"
            )

    def _first_logits(self, length: int | None) -> Tensor:
        """Of some tokens, before anything is known of the vocabulary."""
        *tried, last = (length,) if length else FIRST_LENGTHS
        for tokens in tried:
            with suppress(InputError):
                return self._logits(torch.zeros(1, tokens, dtype=torch.long, device=self.device))
        return self._logits(torch.zeros(1, last, dtype=torch.long, device=self.device))

    def _called_by_function(self, length: int | None) -> list[nn.Module]:
        """The outermost modules that a function calls. They run in eval mode even now: BatchNorm is not to notice."""
        modes: dict[nn.Module, bool] = {}

        def note(module: nn.Module, args: Any) -> None:
            modes.setdefault(module, module.training)
            module.training = False

        handle = register_module_forward_pre_hook(note)
        try:
            with torch.no_grad():
                self._first_logits(length)
        finally:
            handle.remove()
            for module, training in modes.items():
                module.training = training
        roots: list[nn.Module] = []
        for module in modes:  # outer modules are called before what they contain
            if not any(module in set(root.modules()) for root in roots):
                roots.append(module)
        return roots

    def named_modules(self) -> dict[nn.Module, str]:
        """Every module with its qualified name; those of a function begin with the class of what it calls."""
        if isinstance(self.model, nn.Module):
            return {module: name for name, module in self.model.named_modules()}
        names: dict[nn.Module, str] = {}
        for root in self.roots:
            top = type(root).__name__
            for name, module in root.named_modules():
                names.setdefault(module, f"{top}.{name}" if name else top)
        return names

    def widths(self) -> set[int]:
        """Sizes that an axis other than batch and time may have: those of weights, but for the rows of embeddings."""
        found: set[int] = set()
        for module in self.named_modules():
            for weight in module.parameters(recurse=False):
                found.update(weight.shape[1:] if isinstance(module, nn.Embedding) else weight.shape)
        return found

    def embeddings(self) -> list[nn.Embedding]:
        """Where tokens, and in many models positions, become vectors."""
        return [module for module in self.named_modules() if isinstance(module, nn.Embedding)]

    def parameters(self) -> Iterator[nn.Parameter]:
        for root in self.roots:
            yield from root.parameters()

    @property
    def name(self) -> str:
        """Class of a module, name of a function."""
        return getattr(self.model, "__name__", type(self.model).__name__)

    def takes(self, name: str) -> bool:
        """Whether the model names this argument; one that is merely swallowed by **kwargs does not count."""
        return name in self._parameters

    def drawn_ids(self) -> Tensor:
        """The ids random tokens are drawn from: the vocabulary but for padding, beginning and end, which models may
        treat as no text."""
        ids = [number for number in range(self.vocab_size) if number not in self.special_ids]
        return torch.tensor(ids if len(ids) > 1 else range(self.vocab_size))

    def logits(self, ids: Tensor, **inputs: Any) -> Tensor:
        """Logits [B, T, V], in float32 at least.

        Raises:
            InputError: the model raised, or its logits have another shape.
        """
        logits = self._logits(ids, **inputs)
        if logits.shape[:2] != ids.shape:
            raise InputError(
                f"the model gave logits of shape {list(logits.shape)} for ids of shape {list(ids.shape)}, but they are "
                f"needed at every position, [{ids.shape[0]}, {ids.shape[1]}, vocabulary]; wrap it in a function that "
                f"returns those"
            )
        self.logits_dtype = logits.dtype
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _logits(self, ids: Tensor, **inputs: Any) -> Tensor:
        ids = ids.clone()  # some models write to what they are given
        try:
            output = self.model(input_ids=ids, **inputs) if self.takes("input_ids") else self.model(ids, **inputs)
        except Exception as error:
            hint = ""
            if isinstance(error, IndexError):
                hint = (
                    f"; if it has fewer than {ids.shape[1]} positions, give --length (length=), and if it has fewer "
                    f"ids than {self.vocab_size or 'its logits'}, --vocab-size (vocab_size=)"
                )
            raise InputError(
                f"the model could not be called with token ids of shape {list(ids.shape)} on {ids.device}"
                f"{''.join(f' and {name}' for name in inputs)}: {one_line(error)}{hint}"
            ) from error
        found = logits_in(output)
        if not found:
            raise InputError("the model did not return logits: neither a tensor [B, T, V], nor something with .logits")
        if len(found) > 1:
            fitting = [logits for logits in found if logits.shape[-1] == self.vocab_size]
            if not fitting:
                sizes = ", ".join(str(list(logits.shape)) for logits in found)
                raise InputError(f"the model returned several tensors that could be logits ({sizes}); give vocab_size")
            found = fitting
        return found[0]

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """The modules in eval or training mode, their modes and buffers (running statistics) put back afterwards.

        In training mode dropout stays off: it is no way to leak, and which values it drops may depend on other tokens.
        """
        modules = [module for root in self.roots for module in root.modules()]
        modes = {module: getattr(module, "training", None) for module in modules}
        # Also as objects: `self.mean = 0.9 * self.mean + ...` puts another in the place. Those of script modules stay.
        buffers = [(module, dict(module._buffers)) for module in modules if isinstance(module._buffers, dict)]
        contents = [
            (buffer, buffer.detach().clone()) for _, kept in buffers for buffer in kept.values() if buffer is not None
        ]
        for root in self.roots:
            if modes[root] is not None:  # a frozen script module has none
                root.train(training)
        for module in modules:
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.training = False
        try:
            yield
        finally:
            for root in self.roots:  # its own train() may do more than set a flag
                if modes[root] is not None:
                    root.train(bool(modes[root]))
            for module, was_training in modes.items():
                if was_training is not None:
                    module.training = was_training
            with torch.no_grad():
                for module, kept in buffers:
                    module._buffers.update(kept)
                for buffer, content in contents:
                    if not torch.equal(buffer, content):
                        buffer.copy_(content)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Weights that are all almost zero are given some noise, and their values back afterwards."""
        generator = torch.Generator().manual_seed(0)
        asleep: dict[nn.Parameter, Tensor] = {}
        try:
            for weight in self.parameters():
                if _could_wake(weight) and weight not in asleep:
                    asleep[weight] = weight.detach().clone()
                    # By way of .data: graphs that the caller holds stay valid.
                    weight.data.add_(AWAKE * torch.randn(weight.shape, generator=generator).to(weight))
            yield
        finally:
            for weight, content in asleep.items():
                weight.data.copy_(content)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Any], Tensor | None]) -> Iterator[None]:
    """A forward hook on each of the modules, for as long as it lasts."""
    with ExitStack() as handles:
        for module in modules:
            handles.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, the caller's random states (PyTorch's, Python's, NumPy's) are as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  what others draw from is the global one
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def logits_in(output: Any) -> list[Tensor]:
    """What could be the logits in whatever a model returns: a tensor [B, T, V], `.logits`, `["logits"]`, or all such
    tensors of a tuple."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 3 and output.is_floating_point() else []
    if isinstance(output, Mapping):
        return logits_in(output.get("logits"))
    if isinstance(output, tuple | list):
        return [item for item in output if isinstance(item, Tensor) and logits_in(item)]
    return logits_in(getattr(output, "logits", None)) if output is not None else []


def change(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two tensors of one shape.

    Equal infinities (masked entries) are equal, and so are two NaN; one NaN is infinitely far from all else.
    """
    if ours.numel() == 0:
        return 0.0
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    largest = (ours - theirs).abs().masked_fill(same, 0).max().item()
    return math.inf if math.isnan(largest) else largest


def spread(logits: Tensor) -> float:
    """How far logits [B, T, V] vary from position to position: their standard deviation over B and T, of every entry of
    the vocabulary by itself, as a root mean square over those that vary at all.

    An entry that is masked everywhere, or a bias, is not to set the scale of the others.
    """
    flat = logits.flatten(0, 1)
    finite = flat.isfinite()
    count = finite.sum(0).clamp(min=1)
    # From the first row on, so that what is constant, be it -1e9, is exactly so.
    moved = (flat - flat[0].masked_fill(~finite[0], 0)).masked_fill(~finite, 0)
    variance = (moved - moved.sum(0) / count).square().masked_fill(~finite, 0).sum(0) / count
    variance = variance[variance.isfinite() & (variance > 0)]
    return math.sqrt(variance.mean().item()) if len(variance) else 0.0


def one_line(error: BaseException) -> str:
    """Kind and message of an error, in one line that fits a sentence."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message if len(message) <= 160 else message[:157] + '...'}"


def _could_wake(weight: nn.Parameter) -> bool:
    if not weight.is_floating_point() or weight.is_meta or weight.is_inference() or not weight.numel():
        return False
    expanded = any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True))
    return not expanded and weight.abs().max().item() < ASLEEP


def _whole_number(config: Any, name: str, least: int = 1) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value >= least else None


def _special_ids(config: Any) -> set[int]:
    found: set[int] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return found


def _has_signature(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        return False
    return True
