"""Modes and weights of a model under test: changed for some passes, restored afterwards."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from .snapshot import Snapshot


class ModelState:
    """Everything that a model holds.

    Args:
        model: the model itself, be it a module or a function.
        roots: the outermost modules in it.
    """

    def __init__(self, model: object, roots: list[nn.Module]) -> None:
        self.holders, self.roots = [model, *roots], roots
        self._original: Snapshot | None = None
        self._start: Snapshot | None = None
        """With which every pass starts."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the model at the end, its hooks too, also after an error."""
        self._original = Snapshot(self.holders, hooks=True)
        try:
            yield
        finally:
            self._original.restore()
            self._original = None

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """Modules in eval or training mode for one pass, after which the model is restored.

        In training mode dropout stays off: it cannot leak, and the values it drops may depend on other tokens.
        """
        modules = [module for root in self.roots for module in root.modules()]
        start = self._start or Snapshot(self.holders)
        try:
            for root in self.roots:
                if hasattr(root, "training"):  # a frozen script module has no mode
                    root.train(training)
            for module in modules:
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = False
            yield
        finally:
            start.restore()

    def reseed(self, seed: int) -> None:
        """Seed the random generators that the model owns, until the pass ends."""
        if self._start is not None:
            self._start.reseed(seed)

    @contextmanager
    def changed_weights(self, change: Callable[[Iterable[nn.Parameter]], None]) -> Iterator[None]:
        """Passes start with the original weights, changed by a function; at the end the weights are restored."""
        before = self._start
        original = self._original or Snapshot(self.holders)
        try:
            original.restore()
            change(parameter for root in self.roots for parameter in root.parameters())
            self._start = Snapshot(self.holders, earlier=original)
            yield
        finally:
            self._start = before
            original.restore()
            if before is not None:
                before.restore()
