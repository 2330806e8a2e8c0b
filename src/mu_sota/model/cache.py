"""The key/value cache: two cache layers for each layer of the model, one for each of its attentions.

Legend: B batch, H heads, T cached tokens, K size of a head.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

ATTENTIONS = 2  # of a layer, each with its own cache layer
_SPARE = 64  # tokens of capacity beyond the cached ones, when memory is allocated


class GrowingLayer(DynamicLayer):
    """A cache layer with spare capacity: the keys and values of a new token are written behind the others.

    The cache layer of `transformers` copies all keys and values for every token, which took a third of a step.
    """

    _buffer: Tensor | None = None  # [2, B, H, capacity, K]: keys, values
    _kind: tuple[Any, ...] | None = None  # batch, heads, size, dtype and device of the buffer
    _length = 0  # tokens in the buffer
    _assigned: list[Tensor | None] | None = None  # keys and values that replace those of the buffer

    @property
    def keys(self) -> Tensor | None:
        """[B, H, T, K], a view of the buffer; None before the first token."""
        return self._both()[0]

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._assigned = [keys, self._both()[1]]

    @property
    def values(self) -> Tensor | None:
        """As `keys`."""
        return self._both()[1]

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._assigned = [self._both()[0], values]

    def _both(self) -> list[Tensor | None]:
        if self._assigned is not None:
            return self._assigned
        return [None, None] if self._buffer is None else [*self._buffer[:, :, :, : self._length].unbind()]

    def get_seq_length(self) -> int:
        """As in `transformers`: the number of cached tokens."""
        return self._length if self._assigned is None else super().get_seq_length()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As in `transformers`: takes keys and values of new tokens, returns those of all tokens."""
        plain = not key_states.requires_grad and not torch.compiler.is_compiling()
        if not plain or key_states.shape != value_states.shape or not self.takes(key_states.shape, key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        new = key_states.shape[-2]
        buffer = self.grow(key_states.shape, key_states)[:, :, :, : self._length]
        buffer[0, :, :, -new:], buffer[1, :, :, -new:] = key_states, value_states
        keys, values = buffer.unbind()
        return keys, values

    def takes(self, shape: Sequence[int], like: Tensor, past: int | None = None) -> bool:
        """True if batch, heads, size, dtype and device match those of the cached keys, or nothing is cached.

        Keys and values that were assigned from outside are moved into the buffer first.

        Args:
            shape: [B, H, new, K] of the new keys.
            like: has their dtype and device.
            past: the number of cached tokens must be this, too.
        """
        self._store_assigned()
        batch, heads, _, size = shape
        same = self._buffer is None or self._kind == (batch, heads, size, like.dtype, like.device)
        return same and past in (None, self._length)

    def grow(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Count new tokens as cached, and return the buffer [2, B, H, capacity, K] for the caller to fill.

        Args:
            shape, like: of new keys that this cache layer `takes`.
        """
        if not self.is_initialized:
            self.lazy_initialization(like, like)
        self._store_assigned()
        batch, heads, new, size = shape
        if self._buffer is None:
            nothing = like.new_empty(batch, heads, 0, size)
            self._buffer = self._allocate(nothing, nothing, new)
        elif self._length + new > self._buffer.shape[-2]:
            keys, values = self._buffer[:, :, :, : self._length].unbind()
            self._buffer = self._allocate(keys, values, new)
        self._length += new
        return self._buffer

    def _allocate(self, keys: Tensor, values: Tensor, new: int) -> Tensor:
        """A larger buffer that begins with these."""
        batch, heads, length, size = keys.shape
        buffer = keys.new_empty(2, batch, heads, length + new + _SPARE, size)
        buffer[0, :, :, :length], buffer[1, :, :, :length] = keys, values
        self._kind = (batch, heads, size, keys.dtype, keys.device)
        return buffer

    def _store_assigned(self) -> None:
        """Move assigned keys and values into the buffer.

        After a crop they are still views of the buffer's beginning: then only the length changes.
        """
        if self._assigned is None:
            return
        keys, values = self._assigned
        self._assigned = None
        self._length = 0 if keys is None or keys.numel() == 0 else keys.shape[-2]
        if self._buffer is not None and _begins(keys, self._buffer[0]) and _begins(values, self._buffer[1]):
            return
        self._buffer = None
        if keys is not None and values is not None and self._length:
            self._buffer = self._allocate(keys, values, 0)


def _begins(cached: Tensor | None, buffer: Tensor) -> bool:
    """True if the cached tensor is a view of the buffer's beginning."""
    if cached is None or cached.shape[:2] != buffer.shape[:2]:
        return False
    return cached.data_ptr() == buffer.data_ptr() and cached.stride() == buffer.stride()


def add_cache_layers(cache: Cache, count: int) -> None:
    """Bring an empty cache to `count` layers: `generate` makes one for each layer of the model, which needs two.

    Raises:
        ValueError: another model has filled the cache.
    """
    untouched = all(type(layer) is DynamicLayer and not layer.is_initialized for layer in cache.layers)
    if type(cache) is DynamicCache and not cache.offloading and untouched:
        cache.layers = [GrowingLayer() for _ in range(count)]
        return
    missing = count - len(cache.layers)
    if not cache.layers or not missing:
        return
    if missing < 0 or cache.get_seq_length() > 0:
        raise ValueError(
            f"the cache has {len(cache.layers)} layers, but this model fills {count}: it is another model's"
        )
    cache.layers += [deepcopy(cache.layers[0]) for _ in range(missing)]
