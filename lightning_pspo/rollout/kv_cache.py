"""The key-value cache of a decoding batch: written in place, grown by chunks, narrowed as rows finish.

It holds what attention multiplies: under autocast the states in its dtype, which would else be cast at every token.
``transformers.DynamicCache`` copies its content at each token. Here a token is written into a buffer, and a full buffer
is replaced by one that is a chunk longer and as wide as the remaining rows, so that the cache is never both long and
wide if most rows end early.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from lightning_pspo.policy.head import compute_dtype

CHUNK = 64
"""Tokens by which a buffer grows: few copies, little unused memory, few different shapes for the allocator."""
BLOCK = 16
"""Tokens whose keys a compiled decoding step stores as (head dimension, tokens)."""


class GrowingLayer(CacheLayerMixin):
    """Keys and values of one full-attention layer, with the interface of transformers' cache layers.

    ``keys`` and ``values`` are buffers (rows, heads, capacity, head dimension) of a dtype, used up to ``length``; whole
    blocks of ``BLOCK`` tokens are kept, as those may be stored in an order of their own.
    """

    is_sliding = False

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.dtype = dtype

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty buffers that fit the first states."""
        self.keys: Any = key_states[:, :, :0].to(self.dtype)
        self.values: Any = value_states[:, :, :0].to(self.dtype)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, new, head dimension) states; return views of all states."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._with(self.keys, key_states)
        self.values = self._with(self.values, value_states)
        self.length += key_states.shape[2]
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def append_room(self, rows: int, heads: int, width: int) -> None:
        """Lengthen the buffers by one token, which the caller writes."""
        if not self.is_initialized:
            empty = torch.empty(rows, heads, 0, width, dtype=self.dtype)
            self.lazy_initialization(empty, empty)
        self.keys, self.values = self._grown(self.keys, 1), self._grown(self.values, 1)
        self.length += 1

    def _with(self, buffer: Tensor, states: Tensor) -> Tensor:
        buffer = self._grown(buffer, states.shape[2])
        buffer[:, :, self.length : self.length + states.shape[2]] = states
        return buffer

    def _grown(self, buffer: Tensor, new: int) -> Tensor:
        end = self.length + new
        if end <= buffer.shape[2]:
            return buffer
        rows, heads, _, width = buffer.shape
        grown = buffer.new_empty(rows, heads, -(-end // CHUNK) * CHUNK, width)
        used = self._blocks()
        grown[:, :, :used] = buffer[:, :, :used]
        return grown

    def _blocks(self) -> int:
        return -(-self.length // BLOCK) * BLOCK

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of positions that the next queries see, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1, for no limit."""
        return -1

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.keys = self.keys.repeat_interleave(repeats, dim=0)
        self.values = self.values.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order. Only rows that move are copied."""
        if not self.is_initialized:
            return
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        origins = indices[moved]
        for buffer in (self.keys, self.values):
            used = buffer[:, :, : self._blocks()]
            used[moved] = used[origins]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]


class SlidingLayer(DynamicSlidingWindowLayer):
    """Keys and values of one sliding-window layer, kept in a dtype."""

    def __init__(self, window: int, dtype: torch.dtype) -> None:
        super().__init__(sliding_window=window)  # type: ignore[no-untyped-call]
        self.kept = dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, new, head dimension) states; return all that the new tokens may see."""
        states: tuple[Tensor, Tensor] = super().update(
            key_states.to(self.kept), value_states.to(self.kept), *args, **kwargs
        )
        return states


def layer_types(config: PreTrainedConfig) -> set[type]:
    """Return the classes of cache layer that transformers uses for a model."""
    return {type(layer) for layer in DynamicCache(config=config).layers}


def growing_cache(model: PreTrainedModel) -> Cache:
    """Return an empty cache for a model, in the dtype that its attention computes in."""
    dtype = compute_dtype(model)

    def kept(layer: Any) -> Any:
        sliding = type(layer) is DynamicSlidingWindowLayer
        return SlidingLayer(layer.sliding_window, dtype) if sliding else GrowingLayer(dtype)

    return Cache(layers=[kept(layer) for layer in DynamicCache(config=model.config).layers])


class PromptCache:
    """Keys and values of B prompts at full-attention layers, stored once for all completions of a prompt."""

    def __init__(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.mask = mask  # (B, P) bool, left-padded
        self.dtype = dtype
        self.keys: list[Tensor] = []  # (B, heads, P, head dimension) for each layer, zeros where ``mask`` is False
        self.values: list[Tensor] = []

    def write(self, start: int, cache: Cache) -> None:
        """Store a forward pass of consecutive prompts, which may have less padding, from row ``start`` on."""
        layers: list[Any] = cache.layers
        for index, layer in enumerate(layers):
            for stored, states in ((self.keys, layer.keys), (self.values, layer.values)):
                rows, heads, length, width = states.shape
                if len(stored) == index:  # zeros, because masked states must be finite too
                    shape = len(self.mask), heads, self.mask.shape[1], width
                    stored.append(states.new_zeros(shape, dtype=self.dtype))
                stored[index][start : start + rows, :, self.mask.shape[1] - length :] = states

    def select(self, indices: Tensor) -> None:
        """Keep these prompts, in this order."""
        self.mask = self.mask[indices]
        self.keys = [keys[indices] for keys in self.keys]
        self.values = [values[indices] for values in self.values]

    def fork_into(self, cache: Cache, groups: Tensor) -> None:
        """Copy each row's prompt, ``groups`` (n,) long, into an empty cache, and free the prompts."""
        for index in range(len(self.keys)):
            cache.update(self.keys[index][groups], self.values[index][groups], index)
            self.keys[index] = self.values[index] = groups[:0]  # frees this layer
