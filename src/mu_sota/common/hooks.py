"""Hooks that are removed again."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils.hooks import RemovableHandle


@contextmanager
def attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks for the length of a `with` statement, for example `attached(m.register_forward_hook(f) for m in modules)`.

    Args:
        handles: may come from a generator that registers the hooks; if that fails, those before it are removed too.
    """
    with ExitStack() as removals:
        for handle in handles:
            removals.callback(handle.remove)
        yield


@contextmanager
def without_compilation() -> Iterator[None]:
    """Compiled modules run as they were written, so that hooks inside them are called."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
