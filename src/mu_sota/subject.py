"""A model under test: how it is called, what it can take, and passes through it that can be compared.

Legend: B batch, T time, V vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .errors import InputError

EVERYTHING = slice(None)

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


class Subject:
    """A model, whatever it is, as a function from ids [B, T] to logits [B, T, V].

    Args:
        model: an `nn.Module` (of `transformers` or not) called with ids, or any function of ids.
        vocab_size: ids are drawn below it. Default: what the model's configuration says, else the logits' last size.
        device: where ids are made. Default: the device of the model's weights.
        length: tokens of a row when the model is first tried.

    Raises:
        InputError: the model cannot be called with ids, or does not give logits.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        vocab_size: int | None = None,
        device: torch.device | str | None = None,
        length: int = 2,
    ) -> None:
        if not callable(model):
            raise InputError(f"a model to check is a function from token ids to logits, but this is {model!r:.80}")
        self.model = model
        self.device = torch.device(device or "cpu")
        zeros = torch.zeros(1, length, dtype=torch.long)
        self.roots = [model] if isinstance(model, nn.Module) else self._called_by_function(zeros)
        if device is None:
            self.device = next((weight.device for weight in self.parameters()), self.device)
        config = next((one.config for one in (model, *self.roots) if hasattr(one, "config")), None)
        text_config = getattr(config, "get_text_config", lambda: config)()
        self.special_ids = _special_ids(text_config) | _special_ids(config)
        self.positions: int | None = _whole_number(text_config, "max_position_embeddings")
        entry = model.forward if isinstance(model, nn.Module) else model
        self._parameters = inspect.signature(entry).parameters if _has_signature(entry) else {}
        if vocab_size is None:
            vocab_size = _whole_number(text_config, "vocab_size")
        if vocab_size is None:
            with torch.no_grad(), self.mode(training=False):
                vocab_size = self._logits(zeros.to(self.device)).shape[-1]
        if vocab_size < 2:
            raise InputError(f"vocab_size is {vocab_size}, but a model that can leak chooses among at least 2 tokens")
        self.vocab_size = vocab_size

    def _called_by_function(self, ids: Tensor) -> list[nn.Module]:
        """The outermost modules that a function calls. They run in eval mode even now: BatchNorm is not to notice."""
        modes: dict[nn.Module, bool] = {}

        def note(module: nn.Module, args: Any) -> None:
            modes.setdefault(module, module.training)
            module.training = False

        handle = register_module_forward_pre_hook(note)
        try:
            with torch.no_grad():
                self._logits(ids.to(self.device))
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
            InputError: the model raised, its logits have another shape, or hold NaN.
        """
        logits = self._logits(ids, **inputs)
        if logits.shape[:2] != ids.shape:
            raise InputError(
                f"the model gave logits of shape {list(logits.shape)} for ids of shape {list(ids.shape)}, but they are "
                f"needed at every position, [{ids.shape[0]}, {ids.shape[1]}, vocabulary]; wrap it in a function that "
                f"returns those"
            )
        if logits.isnan().any():
            raise InputError("the model's logits hold NaN, so nothing can be said of it; check its weights")
        self.logits_dtype = logits.dtype
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _logits(self, ids: Tensor, **inputs: Any) -> Tensor:
        try:
            logits = logits_in(self.model(ids, **inputs))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the model could not be called with token ids of shape {list(ids.shape)} on {ids.device}"
                f"{''.join(f' and {name}' for name in inputs)}: {one_line(error)}"
            ) from error
        if logits is None:
            raise InputError("the model did not return logits: neither a tensor [B, T, V], nor something with .logits")
        return logits

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """The modules in eval or training mode, their modes and buffers (running statistics) put back afterwards."""
        modules = [module for root in self.roots for module in root.modules()]
        modes = [module.training for module in modules]
        buffers = [buffer for root in self.roots for buffer in root.buffers()] if training else []
        contents = [buffer.detach().clone() for buffer in buffers]
        for root in self.roots:
            root.train(training)
        try:
            yield
        finally:
            for module, was_training in zip(modules, modes, strict=True):
                module.training = was_training
            with torch.no_grad():
                for buffer, content in zip(buffers, contents, strict=True):
                    buffer.copy_(content)

    @contextmanager
    @torch.no_grad()
    def awake(self) -> Iterator[None]:
        """A module whose weights that are all almost zero are given some noise, and their values back afterwards."""
        generator = torch.Generator().manual_seed(0)
        asleep = {
            weight: weight.detach().clone()
            for weight in self.parameters()
            if weight.is_floating_point() and not weight.is_meta and weight.numel() and weight.abs().max() < ASLEEP
        }
        for weight in asleep:
            weight.add_(AWAKE * torch.randn(weight.shape, generator=generator).to(weight))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, content in asleep.items():
                    weight.copy_(content)

    @contextmanager
    def random_state_kept(self) -> Iterator[None]:
        """Whatever is drawn inside, the caller's random state is as before."""
        on_cpu = self.device.type == "cpu"
        with torch.random.fork_rng([] if on_cpu else [self.device], device_type="cuda" if on_cpu else self.device.type):
            yield


def logits_in(output: Any) -> Tensor | None:
    """The logits in whatever a model returns: a tensor, `.logits`, `["logits"]`, or the first [B, T, V] of a tuple."""
    if isinstance(output, Tensor):
        return output if output.ndim == 3 and output.is_floating_point() else None
    if isinstance(output, Mapping):
        return logits_in(output["logits"]) if "logits" in output else None
    if isinstance(output, tuple | list):
        return next((item for item in output if logits_in(item) is item and item is not None), None)
    return logits_in(getattr(output, "logits", None)) if output is not None else None


def change(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two tensors of one shape; equal infinities (masked entries) count as equal."""
    if ours.numel() == 0:
        return 0.0
    return (
        torch.where(ours == theirs, torch.zeros((), dtype=ours.dtype, device=ours.device), ours - theirs)
        .abs()
        .max()
        .item()
    )


def spread(tensor: Tensor) -> float:
    """Standard deviation of the finite entries; 0 if there are fewer than two."""
    finite = tensor[tensor.isfinite()]
    deviation = finite.std().item() if finite.numel() > 1 else 0.0
    return deviation if math.isfinite(deviation) else 0.0


def one_line(error: BaseException) -> str:
    """Kind and message of an error, in one line that fits a sentence."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message if len(message) <= 160 else message[:157] + '...'}"


def _whole_number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None


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
