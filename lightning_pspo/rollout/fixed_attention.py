"""Attention of one new token per row, to a shared prompt and the row's own tokens, in buffers that stay in place."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from lightning_pspo.rollout.prefix_attention import NOT_HANDLED, CannotShareError, attending

NAME = "lightning_pspo_fixed"


@dataclass(frozen=True)
class View:
    """The part of the buffers that a step works on."""

    rows: int  # decoded, finished ones among them
    prompts: int
    prompt_tokens: int
    tokens: int  # places of the cache that are attended
    per_prompt: int  # slots of a prompt in the attention to prompts


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers that stay where they are: (rows or prompts, heads, tokens, width)."""

    is_sliding = False

    def __init__(self, step: Tensor, keys: Tensor, values: Tensor, prompt_keys: Tensor, prompt_values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = step  # (1,) long, where the next states are written
        self.keys: Any = keys
        self.values: Any = values
        self.prompt_keys, self.prompt_values = prompt_keys, prompt_values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers exist."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, 1, width) states at the step's place, and return them: attention reads the buffers."""
        rows = len(key_states)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[:rows].index_copy_(2, self.step, states.to(buffer.dtype))
        self.last_states = key_states, value_states
        return self.last_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of positions that the next queries see, and the first of them."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Return 0: positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of places."""
        return int(self.keys.shape[2])


class FixedCache(Cache):
    """A cache of such layers. Compiled code calls it: what the layers hold is not part of that code."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Pass the states to their layer."""
        return super().update(*args, **kwargs)


class FixedAttention:
    """Attention over the layers of a batch.

    Args:
        layers: Keys and values.
        step: (1,) long, the place of the current token.
        slot_of: (rows,) long, each row's place among the slots of the prompts.
        prompt_bias: (prompts, tokens), 0 where a prompt has a token and -inf before it.
    """

    def __init__(self, *, layers: Sequence[FixedLayer], step: Tensor, slot_of: Tensor, prompt_bias: Tensor) -> None:
        self.layers = layers
        self.step, self.slot_of, self.prompt_bias = step, slot_of, prompt_bias
        self.view: View | None = None
        self.calls = 0  # to notice a layer with its own attention

    def used(self, model: PreTrainedModel, view: View) -> contextlib.AbstractContextManager[None]:
        """Make a model attend through the ``fixed`` argument of its forward, or raise ``CannotShareError``."""
        self.view = view
        return attending(model, NAME, self, len(self.layers))

    def attend(self, layer: FixedLayer, query: Tensor) -> Tensor:
        """Return the attention of one scaled query per row and head: one softmax over the prompt and the completion.

        Queries and result are (n, key heads, r, width), with r query heads per key head.
        """
        view = self.view
        assert view is not None
        rows, heads, repeats, width = query.shape
        slots = query.new_zeros(view.prompts * view.per_prompt, heads, repeats, width)
        slots[self.slot_of[:rows]] = query
        grouped = slots.view(view.prompts, view.per_prompt, heads, repeats, width).transpose(1, 2).flatten(2, 3)
        prompt_part = (slice(view.prompts), slice(None), slice(-view.prompt_tokens, None))
        bias = self.prompt_bias[: view.prompts, None, None, -view.prompt_tokens :]
        prompt, prompt_sum = attention_and_sum(
            grouped, layer.prompt_keys[prompt_part], layer.prompt_values[prompt_part], bias
        )

        def by_row(values: Tensor) -> Tensor:  # (B, heads, slots * r, ...) to (n, heads, r, ...)
            values = torch.unflatten(values, 2, (view.per_prompt, repeats)).transpose(1, 2).flatten(0, 1)
            return values[self.slot_of[:rows]]

        seen = torch.arange(view.tokens, device=query.device) <= self.step
        bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, float("-inf")).expand(1, 1, 1, -1)
        own, own_sum = attention_and_sum(
            query, layer.keys[:rows, :, : view.tokens], layer.values[:rows, :, : view.tokens], bias
        )
        share = torch.sigmoid(by_row(prompt_sum) - own_sum).unsqueeze(3)  # (n, heads, r, 1) float32
        return torch.lerp(own.float(), by_row(prompt).float(), share).to(query.dtype)


def attention_and_sum(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention and the log of its softmax's sum, by the device's fused kernel.

    Args:
        query: (b, heads, q, width), scaled.
        keys: (b, heads, k, width).
        values: (b, heads, k, value width).
        bias: (b or 1, 1, 1, k), added to the scores; a query must see a key.

    Returns:
        (b, heads, q, value width), and (b, heads, q) float32.
    """
    device = query.device.type
    if device == "cpu":
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=bias, scale=1.0
        )
        return out, total
    if device == "cuda":
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], -1)
        out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, keys, values, bias, True, scale=1.0
        )
        return out, total[:, :, : query.shape[2]]  # padded to a multiple of 32
    scores = (query @ keys.transpose(2, 3)).float() + bias
    return scores.softmax(dim=-1).to(values.dtype) @ values, scores.logsumexp(dim=-1)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    fixed: FixedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface, from (n, query heads, 1, width) to (n, 1, query heads, width)."""
    if fixed is None or any(kwargs.get(name) is not None for name in NOT_HANDLED):
        raise CannotShareError(f"{type(module).__name__} is more than plain attention")
    index: Any = module.layer_idx
    rows, query_heads, _, width = query.shape
    layer = fixed.layers[index]
    if key is not layer.last_states[0] or value is not layer.last_states[1]:
        raise CannotShareError(f"{type(module).__name__} changes the states from the cache")
    fixed.calls += 1
    scaled = (query * (width**-0.5 if scaling is None else scaling)).to(layer.keys.dtype)
    out = fixed.attend(layer, scaled.reshape(rows, key.shape[1], -1, width))
    return out.reshape(rows, 1, query_heads, value.shape[3]), None


AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # type: ignore[no-untyped-call]
