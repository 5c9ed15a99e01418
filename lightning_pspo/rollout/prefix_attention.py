"""Attention of one new token per row to a prompt that several rows share, and to the row's own completion.

The keys and values of a prompt are stored once, and read once for all its completions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

from lightning_pspo.rollout.kv_cache import PromptCache

NAME = "lightning_pspo_shared_prefix"
NOT_HANDLED = ("softcap", "s_aux", "position_bias", "sliding_window")


class CannotShareError(RuntimeError):
    """A model's attention needs something that ``SharedPrefix`` does not support."""


class SharedPrefix:
    """Prompts, and which of them each row of a decoding batch continues."""

    def __init__(self, *, prompts: PromptCache, own: Cache, groups: Tensor) -> None:
        self.prompts = prompts
        self.own = own  # cache of the completions
        self.groups = groups  # (n,) long, the prompt of each row; every prompt has at least one row
        self.calls = 0  # to notice a layer with its own attention
        self._arrange()

    def _arrange(self) -> None:
        """Give each row a slot of its prompt; every prompt has as many slots as the one with the most rows."""
        groups, mask = self.groups, self.prompts.mask
        order = groups.argsort(stable=True)
        counts = torch.bincount(groups, minlength=len(mask))
        first = counts.cumsum(0) - counts
        rank = torch.empty_like(groups)
        rank[order] = torch.arange(len(groups), device=groups.device) - first[groups[order]]
        self.width = int(counts.max())
        self.slots = groups * self.width + rank  # (n,)
        everything = torch.arange(len(mask) * self.width, device=groups.device)
        self.in_place = torch.equal(self.slots, everything)
        self.starts = (~mask).sum(dim=1)  # (B,), of the prompts behind their padding
        self.bias: Tensor | None = None  # (B, 1, 1, P)
        if not bool(mask.all()):
            self.bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))[:, None, None]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, and the prompts that they continue."""
        prompts, self.groups = torch.unique(self.groups[rows], return_inverse=True)
        if len(prompts) < len(self.prompts.mask):
            self.prompts.select(prompts)
        self._arrange()

    def grouped(self, rows: Tensor) -> Tensor:
        """Arrange (n, heads, r, width) by prompt: (B * heads, slots * r, width); empty slots are zero."""
        heads, repeats, width = rows.shape[1:]
        if not self.in_place:
            slots = rows.new_zeros(len(self.prompts.mask) * self.width, heads, repeats, width)
            slots[self.slots] = rows
            rows = slots
        rows = rows.reshape(-1, self.width, heads, repeats, width).transpose(1, 2)
        return rows.reshape(-1, self.width * repeats, width)

    def ungrouped(self, grouped: Tensor, heads: int) -> Tensor:
        """Undo ``grouped``: (B * heads, slots * r, width) to (n, heads, r, width)."""
        repeats, width = grouped.shape[1] // self.width, grouped.shape[2]
        rows = grouped.view(-1, heads, self.width, repeats, width).transpose(1, 2).reshape(-1, heads, repeats, width)
        return rows if self.in_place else rows[self.slots]

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Return the attention of one query per row and head: one softmax over the prompt and the completion.

        Queries and the result are (n, key heads, r, width), with r query heads per key head; keys and values of
        the completions so far are (n, key heads, t, width).
        """
        if keys.dtype == torch.bfloat16 and keys.device.type == "cpu":
            return self._merged(layer, query.to(keys.dtype), keys, values, scaling)
        query = query * scaling
        heads, prompt_length = keys.shape[1], self.prompts.mask.shape[1]
        prompt_keys, prompt_values = self.prompts.keys[layer].flatten(0, 1), self.prompts.values[layer].flatten(0, 1)
        scores = torch.bmm(self.grouped(query), prompt_keys.transpose(1, 2))  # (B * heads, slots * r, P)
        if self.bias is not None:
            scores.view(-1, heads, *scores.shape[1:]).add_(self.bias)
        own_scores = query @ keys.transpose(2, 3)
        weights = torch.cat([self.ungrouped(scores, heads), own_scores], dim=-1).softmax(dim=-1)  # (n, heads, r, P + t)
        from_prompt = torch.bmm(self.grouped(weights[..., :prompt_length]), prompt_values)
        return self.ungrouped(from_prompt, heads) + weights[..., prompt_length:] @ values

    def _merged(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Do the same with one fused kernel over prompts and one over completions, weighed by their softmax's sums.

        In bfloat16 the plain products are slow on a CPU, and would round every score.
        """
        fused, heads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, keys.shape[1]
        grouped = torch.unflatten(self.grouped(query), 0, (-1, heads))  # (B, heads, slots * r, width)
        bias = None if self.bias is None else self.bias.to(query.dtype)
        outs = fused(grouped, self.prompts.keys[layer], self.prompts.values[layer], attn_mask=bias, scale=scale)
        prompt, prompt_sum = (self.ungrouped(t.flatten(0, 1), heads) for t in (outs[0], outs[1].unsqueeze(3)))
        own, own_sum = fused(query, keys, values, scale=scale)
        share = torch.sigmoid(prompt_sum - own_sum.unsqueeze(3))  # (n, heads, r, 1) float32
        return torch.lerp(own.float(), prompt.float(), share).to(query.dtype)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface, from (n, query heads, 1, width) to (n, 1, query heads, width)."""
    layer: Any = module.layer_idx
    if shared_prefix is None or any(kwargs.get(name) is not None for name in NOT_HANDLED):
        raise CannotShareError(type(module).__name__)
    own: Any = shared_prefix.own.layers[layer]
    if (key.data_ptr(), value.data_ptr()) != (own.keys.data_ptr(), own.values.data_ptr()):
        raise CannotShareError(f"{type(module).__name__} changes the states from the cache")
    rows, query_heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width)
    out = shared_prefix.attend(layer, grouped, key, value, width**-0.5 if scaling is None else scaling)
    shared_prefix.calls += 1
    return out.reshape(rows, 1, query_heads, value.shape[3]), None


AttentionInterface.register(NAME, _attention)


@contextlib.contextmanager
def attending(model: PreTrainedModel, name: str, through: Any, layers: int) -> Iterator[None]:
    """Make a model attend by a registered function, which counts the ``calls`` of the object that it works ``through``.

    CannotShareError is raised at the end unless each of the layers has called it.
    """
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation, through.calls = name, 0
    try:
        yield
    finally:
        config._attn_implementation = before
    if through.calls != layers:
        raise CannotShareError(f"{type(model).__name__} uses its own attention")
