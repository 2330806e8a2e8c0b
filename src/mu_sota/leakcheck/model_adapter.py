"""A model under test: how it is called, what it can take, and passes through it that can be compared.

Legend: B batch, T time, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .logits import candidates, listed, named_tensors
from .perturbation import Scaling, perturb_zeros, scale_up
from .snapshot import Snapshot

FIRST_LENGTHS = (61, 64, 128, 32, 16, 2)
"""Tokens with which a model of unknown size is tried: it may not take many, or not take few, or want whole chunks."""


class ModelUnderTest:
    """A model, whatever it is, as a function from ids [B, T] to logits [B, T, V].

    Args:
        model: an `nn.Module` (of `transformers` or not) called with ids, or any function of ids.
        vocab_size: ids are drawn below it. Default: what the model's configuration says, else the logits' last size.
        device: where ids are made. Default: the device of the model's weights.
        length: tokens of a row when the model is first tried. Default: many, and if that fails others.
        output: name or index of the logits in what the model returns. Default: `logits`, or the only one.

    Raises:
        InputError: the model cannot be called with ids, or does not give logits.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        vocab_size: int | None = None,
        device: torch.device | str | None = None,
        length: int | None = None,
        output: str | int | None = None,
    ) -> None:
        if not callable(model):
            raise InputError(f"a model to check is a function from token ids to logits, but this is {model!r:.80}")
        self.model, self.output = model, output
        self._original: Snapshot | None = None
        self._start: Snapshot | None = None
        self.device = torch.device(device or "cpu")
        entry = model.forward if isinstance(model, nn.Module) else model
        self._parameters = inspect.signature(entry).parameters if _has_signature(entry) else {}
        self.vocab_size = vocab_size or 0
        self.roots = [model] if isinstance(model, nn.Module) else self._called_by_function(length)
        if any(torch.nn.parameter.is_lazy(weight) for weight in self.parameters()):
            raise InputError("the model has weights that are made at its first call; call it once, then check it")
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
        return self.at_some_length(
            (length,) if length else FIRST_LENGTHS,
            lambda tokens: self._logits(torch.zeros(1, tokens, dtype=torch.long, device=self.device)),
        )

    def at_some_length(self, lengths: Iterable[int], attempt: Callable[[int], Tensor]) -> Tensor:
        """What the first length that the model takes gives.

        Raises:
            InputError: it takes none of them; the reason is that of the first.
        """
        refused: dict[int, InputError] = {}
        for tokens in lengths:
            try:
                return attempt(tokens)
            except InputError as error:
                refused[tokens] = error
        first, *others = refused
        more = f"; neither did it take {', '.join(map(str, others))} tokens" if others else ""
        hint = more and f"{more}; if it takes another number, give --length (length=)"
        raise InputError(f"{refused[first]}{hint}") from refused[first]

    def _called_by_function(self, length: int | None) -> list[nn.Module]:
        """The outermost modules that a function calls. They run in eval mode even now: BatchNorm is not to notice."""
        roots: list[nn.Module] = []
        inside: set[nn.Module] = set()
        states = [Snapshot([self.model], hooks=True)]

        def note(module: nn.Module, args: Any) -> None:
            if module not in inside:  # outer modules are called before what they contain
                states.append(Snapshot([module], hooks=True))
                roots.append(module)
                inside.update(module.modules())
            module.training = False

        handle = register_module_forward_pre_hook(note)
        try:
            with torch.no_grad():
                self._first_logits(length)
        finally:
            handle.remove()
            for state in reversed(states):
                state.restore()
        contained = {inner for root in roots for inner in root.modules() if inner is not root}
        return [root for root in roots if root not in contained]

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
        return self._among(named_tensors(output), ids)

    def _among(self, named: dict[str, Tensor], ids: Tensor) -> Tensor:
        """The logits among the tensors that a model returned."""
        if self.output is not None:
            name = str(self.output)
            if name not in named:
                raise InputError(
                    f"the model returned nothing [B, T, V] that is called {name!r}; --output (output=) can be one of "
                    f"{listed(named) or 'nothing: there is no such tensor'}"
                )
            return named[name]
        found = candidates(named)
        if not found:
            others = f"; of what it did return, name one with --output (output=): {listed(named)}" if named else ""
            raise InputError(
                f"the model did not return logits: neither a tensor [B, T, V], nor something with .logits{others}"
            )
        if len(found) > 1:
            found = {name: one for name, one in found.items() if one.shape[:2] == ids.shape} or found
        if len(found) > 1:
            fitting = [one for one in found.values() if one.shape[-1] == self.vocab_size]
            if len(fitting) != 1:
                raise InputError(
                    f"the model returned several tensors that could be logits ({listed(found)}); "
                    f"{'' if fitting else 'give vocab_size, or '}name the one with --output NAME or INDEX (output=)"
                )
            return fitting[0]
        return next(iter(found.values()))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever happens inside, the model is afterwards as it was."""
        self._original = Snapshot([self.model, *self.roots], hooks=True)
        try:
            yield
        finally:
            self._original.restore()
            self._original = None

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """The modules in eval or training mode; afterwards all that the model holds is as before.

        In training mode dropout stays off: it is no way to leak, and which values it drops may depend on other tokens.
        """
        modules = [module for root in self.roots for module in root.modules()]
        state = self._start or Snapshot([self.model, *self.roots])
        try:
            for root in self.roots:
                if hasattr(root, "training"):  # a frozen script module has no mode
                    root.train(training)
            for module in modules:
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = False
            yield
        finally:
            state.restore()

    def reseed(self, seed: int) -> None:
        """The random generators that the model owns, until the pass is over."""
        if self._start is not None:
            self._start.reseed(seed)

    @contextmanager
    def zeros_perturbed(self) -> Iterator[None]:
        """Weights that are all almost zero are given some noise, and their values back afterwards."""
        with self._weights(perturb_zeros):
            yield

    @contextmanager
    def scaled_up(self, scaling: Scaling) -> Iterator[None]:
        """Weights are scaled up, so that gates open which are shut, and get their values back afterwards."""
        with self._weights(lambda weights: scale_up(weights, scaling)):
            yield

    @contextmanager
    def _weights(self, changed: Callable[[Iterable[nn.Parameter]], None]) -> Iterator[None]:
        """With other weights, from which, and from the state of now, every pass starts."""
        before = self._start
        original = self._original or Snapshot([self.model, *self.roots])
        try:
            original.restore()
            changed(self.parameters())
            self._start = Snapshot([self.model, *self.roots], earlier=original)
            yield
        finally:
            self._start = before
            original.restore()
            if before is not None:
                before.restore()


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
