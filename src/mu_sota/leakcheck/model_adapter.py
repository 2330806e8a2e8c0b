"""A model under test: how it is called, and which ids and sizes it takes.

Legend: B batch, T time, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mu_sota.common.text import one_line
from mu_sota.model.errors import InputError

from .logits import choose_logits
from .model_state import ModelState
from .snapshot import Snapshot

FIRST_LENGTHS = (61, 64, 128, 32, 16, 2)
"""Tokens with which a model of unknown size is tried: it may not take many, or not take few, or want full chunks."""


class ModelUnderTest:
    """Any model, as a function from ids [B, T] to logits [B, T, V].

    Args:
        model: an `nn.Module` (of `transformers` or not) called with ids, or any function of ids.
        vocab_size: ids are drawn below it. Default: from the model's configuration, else the logits' last size.
        device: where ids are made. Default: the device of the model's weights.
        length: tokens of a row when the model is first tried. Default: many, and if that fails others.
        output: name or index of the logits in the model's output. Default: `logits`, or the only candidate.

    Attributes:
        roots: the model, or the outermost modules that a function calls.
        state: modes, weights and everything else the model holds.
        positions: the most tokens that it takes, if its configuration says so.

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
        self.device = torch.device(device or "cpu")
        entry = model.forward if isinstance(model, nn.Module) else model
        self._parameters = inspect.signature(entry).parameters if _has_signature(entry) else {}
        self.vocab_size = vocab_size or 0
        if isinstance(model, nn.Module):
            self.roots = [model]
        else:
            self.roots = _modules_called(model, lambda: self._first_logits(length))
        self.state = ModelState(model, self.roots)
        if any(torch.nn.parameter.is_lazy(weight) for weight in self.parameters()):
            raise InputError("the model has weights that are made at its first call; call it once, then check it")
        if device is None:
            self.device = next((weight.device for weight in self.parameters()), self.device)
        config = next((one.config for one in (model, *self.roots) if hasattr(one, "config")), None)
        text_config = getattr(config, "get_text_config", lambda: config)()
        self.special_ids = _special_ids(text_config) | _special_ids(config)
        self.pad_id = _integer(text_config, "pad_token_id", least=0)
        self.positions: int | None = _integer(text_config, "max_position_embeddings")
        if vocab_size is None:
            self.vocab_size = _integer(text_config, "vocab_size") or 0
        if vocab_size is None and not self.vocab_size:
            with torch.no_grad(), self.state.mode(training=False):
                self.vocab_size = self._first_logits(length).shape[-1]
        if self.vocab_size < 2:
            raise InputError(
                f"vocab_size is {self.vocab_size}, but a model that can leak chooses among at least 2 tokens"
            )

    @property
    def name(self) -> str:
        """Class of a module, name of a function."""
        return getattr(self.model, "__name__", type(self.model).__name__)

    def takes(self, name: str) -> bool:
        """The model names this argument; one that **kwargs merely swallow does not count."""
        return name in self._parameters

    def parameters(self) -> Iterator[nn.Parameter]:
        for root in self.roots:
            yield from root.parameters()

    def named_modules(self) -> dict[nn.Module, str]:
        """Every module with its qualified name; names in a function begin with the class of the module it calls."""
        if isinstance(self.model, nn.Module):
            return {module: name for name, module in self.model.named_modules()}
        names: dict[nn.Module, str] = {}
        for root in self.roots:
            top = type(root).__name__
            for name, module in root.named_modules():
                names.setdefault(module, f"{top}.{name}" if name else top)
        return names

    def embeddings(self) -> list[nn.Embedding]:
        """Where tokens, and in many models positions, become vectors."""
        return [module for module in self.named_modules() if isinstance(module, nn.Embedding)]

    def widths(self) -> set[int]:
        """Sizes that an axis other than batch and time may have: those of weights, but for the rows of embeddings."""
        found: set[int] = set()
        for module in self.named_modules():
            for weight in module.parameters(recurse=False):
                found.update(weight.shape[1:] if isinstance(module, nn.Embedding) else weight.shape)
        return found

    def drawn_ids(self) -> Tensor:
        """The ids that random tokens are drawn from: the vocabulary but for padding, beginning and end, which models
        may not treat as text."""
        ids = [number for number in range(self.vocab_size) if number not in self.special_ids]
        return torch.tensor(ids if len(ids) > 1 else range(self.vocab_size))

    def logits(self, ids: Tensor, **inputs: Any) -> Tensor:
        """Logits [B, T, V] for ids [B, T], in float32 at least.

        Raises:
            InputError: the model raised, or its logits have another shape.
        """
        logits = self._call(ids, **inputs)
        if logits.shape[:2] != ids.shape:
            raise InputError(
                f"the model gave logits of shape {list(logits.shape)} for ids of shape {list(ids.shape)}, but they are "
                f"needed at every position, [{ids.shape[0]}, {ids.shape[1]}, vocabulary]; wrap it in a function that "
                f"returns those"
            )
        self.logits_dtype = logits.dtype
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _call(self, ids: Tensor, **inputs: Any) -> Tensor:
        ids = ids.clone()  # some models write to their input
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
        return choose_logits(output, ids, self.vocab_size, self.output)

    def _first_logits(self, length: int | None) -> Tensor:
        """Logits for tokens 0: nothing is known of the vocabulary yet."""
        return at_some_length(
            (length,) if length else FIRST_LENGTHS,
            lambda tokens: self._call(torch.zeros(1, tokens, dtype=torch.long, device=self.device)),
        )


def _modules_called(function: Callable[..., Any], call: Callable[[], object]) -> list[nn.Module]:
    """The outermost modules that a function calls. This first call, too, has them in eval mode: it would change the
    statistics of BatchNorm otherwise.

    Args:
        function: with all that it holds, it is restored.
        call: calls it.
    """
    roots: list[nn.Module] = []
    inside: set[nn.Module] = set()
    snapshots = [Snapshot([function], hooks=True)]

    def note(module: nn.Module, args: Any) -> None:
        if module not in inside:  # an outer module is called before the modules in it
            snapshots.append(Snapshot([module], hooks=True))
            roots.append(module)
            inside.update(module.modules())
        module.training = False

    try:
        with torch.no_grad(), register_module_forward_pre_hook(note):
            call()
    finally:
        for snapshot in reversed(snapshots):
            snapshot.restore()
    contained = {inner for root in roots for inner in root.modules() if inner is not root}
    return [root for root in roots if root not in contained]


def at_some_length(lengths: Iterable[int], attempt: Callable[[int], Tensor]) -> Tensor:
    """The result of `attempt` for the first length that the model takes.

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
    hint = ""
    if others:
        hint = f"; neither did it take {', '.join(map(str, others))} tokens; if it takes another number, give "
        hint += "--length (length=)"
    raise InputError(f"{refused[first]}{hint}") from refused[first]


def _integer(config: Any, name: str, least: int = 1) -> int | None:
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
