"""Faster attention of passes in bfloat16 on a CPU: plain products in float32, a few sequences at a time.

PyTorch's fused kernels are made for thousands of tokens. Over a hundred they convert and copy more than they compute,
and where completions share their prompt, a mask over the whole tree would have attention look at all pairs of its
tokens. Here a completion looks at its prompt and at itself alone, the prompt of a tree is attended to once, and scores,
which are made again in the backward pass, are few enough to stay in the cache. They are not rounded to bfloat16, so
that outputs and gradients are closer to the exact ones than PyTorch's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lightning_pspo.policy.head import compute_dtype

SHORT = 192
"""Tokens of a sequence without branches from which on PyTorch's kernel is faster."""
PART = 64
"""Tokens of a sequence whose queries are taken at once: their scores for later tokens are computed in vain."""
SCORES = 2**18
"""Scores at once for each thread: 1 MiB."""


def is_faster(model: PreTrainedModel) -> bool:
    """Tell whether ``CPUAttention`` pays; not in layers that are run again after the block."""
    name = "is_activation_checkpointing"
    recomputes = getattr(model, name if hasattr(type(model), name) else "is_gradient_checkpointing")
    return model.device.type == "cpu" and compute_dtype(model) == torch.bfloat16 and not recomputes


class CPUAttention(TorchFunctionMode):
    """Catches a model's calls of ``scaled_dot_product_attention``, which gets no mask for trees, but their ``leaves``.

    Args:
        leaves: As in ``PackedInputs``; None for sequences without branches.
    """

    def __init__(self, leaves: Tensor | None = None) -> None:
        super().__init__()
        self.leaves = leaves

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **options)
        causal = len(args) == 3 and options.get("is_causal") and options.get("attn_mask") is None
        plain = causal and not options.get("dropout_p") and args[0].dim() == 4 and args[0].shape[3] == args[2].shape[3]
        if self.leaves is not None and not plain:
            raise RuntimeError("attention over a tree must be plain and causal.")
        if not plain or (self.leaves is None and args[0].shape[2] >= SHORT):
            return func(*args, **options)
        if torch.is_autocast_enabled(args[0].device.type):
            args = tuple(states.to(torch.get_autocast_dtype(args[0].device.type)) for states in args)
        scale = options.get("scale") or args[0].shape[3] ** -0.5
        return _attention(*(states.transpose(1, 2) for states in args), scale, self.leaves).transpose(1, 2)


@dataclass(frozen=True)
class _Block:
    """m sequences side by side that continue one trunk, which may be empty: places in flat tokens, (S * L, ...)."""

    trunk: slice
    tokens: slice
    lengths: Sequence[int]  # of the sequences, together ``tokens``

    @property
    def shape(self) -> tuple[int, int]:
        """M and W, the tokens of the longest sequence."""
        return len(self.lengths), max(self.lengths)

    @property
    def parts(self) -> list[slice]:
        """Cut the longest sequence into equal parts of at most ``PART`` tokens."""
        _, width = self.shape
        size = -(-width // -(-width // PART))
        return [slice(first, min(first + size, width)) for first in range(0, width, size)]

    def padded(self, states: Tensor) -> Tensor:
        """Take the tokens of (S * L, heads, D) states: (m, W, heads, D), 0 behind each sequence's end."""
        states = states[self.tokens]
        if self._real is None:
            return states.view(*self.shape, *states.shape[1:])
        return states.new_zeros(*self.shape, *states.shape[1:]).index_put_((self._real,), states)

    def unpadded(self, states: Tensor) -> Tensor:
        """Undo ``padded``."""
        return states.flatten(0, 1) if self._real is None else states[self._real]

    @cached_property
    def _real(self) -> Tensor | None:
        """Which of (m, W) are tokens, None if all are."""
        if len(set(self.lengths)) == 1:
            return None
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths).unsqueeze(1)


def _blocks(leaves: Tensor | None, sequences: int, length: int, heads: int) -> Iterator[_Block]:
    """Cut S sequences of L tokens, or trees with these leaves, into blocks of at most ``SCORES`` scores if they can."""
    most = SCORES * torch.get_num_threads() // heads
    if leaves is None:
        size = max(1, most // (min(length, PART) * length))
        for first in range(0, sequences, size):
            count = min(size, sequences - first)
            yield _Block(slice(0, 0), slice(first * length, (first + count) * length), [length] * count)
        return
    for tree, members in itertools.groupby(leaves.tolist(), key=itemgetter(0)):
        _, starts, lengths, (trunk_length, *_) = zip(*members, strict=True)
        trunk = slice(tree * length, tree * length + trunk_length)
        yield _Block(slice(0, 0), trunk, [trunk_length])
        longest = max(1, *lengths)
        size = max(1, most // (min(longest, PART) * (trunk_length + longest)))
        for first in range(0, len(lengths), size):
            some = lengths[first : first + size]
            start = tree * length + starts[first]
            if any(some):
                yield _Block(trunk, slice(start, start + sum(some)), some)


class _Layout:
    """Between (m, W, heads, D) and (k, m * r * W, D), with r heads for each of k key heads, at least float32."""

    def __init__(self, keys: int, dtype: torch.dtype) -> None:
        self.keys = keys
        self.dtype = torch.promote_types(dtype, torch.float32)

    def __call__(self, states: Tensor) -> Tensor:
        rows = states.unflatten(2, (self.keys, -1)).permute(2, 0, 3, 1, 4)  # type: ignore[no-untyped-call]
        return torch.empty(rows.shape, dtype=self.dtype).copy_(rows).view(self.keys, -1, states.shape[3])

    def back(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return (m, W, heads, D) of these sizes, in the same dtype."""
        count, width, heads, size = shape
        return rows.view(self.keys, count, heads // self.keys, width, size).permute(1, 3, 0, 2, 4).reshape(shape)


@dataclass(frozen=True)
class _Inputs:
    """Some queries, all keys and values before them: one softmax over the trunk of P tokens and a sequence's own K."""

    queries: Tensor  # (k, m * r * Q, D), scaled
    trunk: Sequence[Tensor]  # keys and values, (k, P, D)
    own: Sequence[Tensor]  # keys and values, (k * m, K, D)

    def apart(self, rows: Tensor) -> Tensor:
        """View (k, m * r * Q, D) as (k * m, r * Q, D)."""
        return rows.view(len(self.own[0]), -1, rows.shape[-1])

    def sides(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """View (k * m, r * Q, P + K) as the trunk's part, (k, m * r * Q, P), and the rest, (k * m, r * Q, K)."""
        length = self.trunk[0].shape[1]
        return scores[..., :length].view(*self.queries.shape[:2], length), scores[..., length:]

    def products(self, rows: Tensor, kind: int) -> Tensor:
        """Return the products of (k, m * r * Q, D) with all keys (0) or values (1): (k * m, r * Q, P + K)."""
        trunk, own, apart = self.trunk[kind], self.own[kind], self.apart(rows)
        result = rows.new_empty(*apart.shape[:2], trunk.shape[1] + own.shape[1])
        of_trunk, of_own = self.sides(result)
        torch.bmm(rows, trunk.mT, out=of_trunk)
        torch.bmm(apart, own.mT, out=of_own)
        return result

    def weights(self, count: int) -> Tensor:
        """Return the softmax of the scores, (k * m, r * Q, P + K); the Q queries are those of the last Q keys."""
        scores = self.products(self.queries, 0)
        later = torch.ones(count, count, dtype=torch.bool).triu(1)
        torch.unflatten(scores[..., -count:], 1, (-1, count)).masked_fill_(later, -torch.inf)
        return scores.softmax(dim=-1)

    def sums(self, weights: Tensor, kind: int) -> Tensor:
        """Return the sums of all keys (0) or values (1), (k * m, r * Q, D), weighed by (k * m, r * Q, P + K)."""
        of_trunk, of_own = self.sides(weights)
        return self.apart(torch.bmm(of_trunk, self.trunk[kind])).baddbmm_(of_own, self.own[kind])

    def sums_of_queries(self, weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for the trunk's keys and for the own, the sums of (k, m * r * Q, D) rows of the queries."""
        of_trunk, of_own = self.sides(weights)
        return torch.bmm(of_trunk.mT, rows), torch.bmm(of_own.mT, self.apart(rows))


def _inputs(block: _Block, layout: _Layout, states: Sequence[Tensor], scale: float) -> Iterator[tuple[slice, _Inputs]]:
    """Yield the parts of a block's sequences, and what their queries look at."""
    query, *others = (block.padded(tensor) for tensor in states)
    trunk = [layout(tensor[block.trunk].unsqueeze(0)) for tensor in states[1:]]
    own = [layout(tensor).view(-1, *tensor.shape[1::2]) for tensor in others]
    for part in block.parts:
        before = [tensor[:, : part.stop] for tensor in own]
        yield part, _Inputs(layout(query[:, part]).mul_(scale), trunk, before)


@torch.library.custom_op("lightning_pspo::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float, leaves: Tensor | None) -> Tensor:
    """Map (S, L, H, D) queries, and keys and values of fewer heads, to (S, L, H, D); 0 for a tree's padding."""
    sequences, length, heads, _ = query.shape
    layout = _Layout(key.shape[2], query.dtype)
    states = [tensor.flatten(0, 1) for tensor in (query, key, value)]
    result = query.new_zeros(states[0].shape)  # contiguous, as the fake says
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(leaves, sequences, length, heads):
            outputs = result.new_empty(*block.shape, *result.shape[1:])
            for part, inputs in _inputs(block, layout, states, scale):
                some = outputs[:, part]
                some.copy_(layout.back(inputs.sums(inputs.weights(some.shape[1]), 1), some.shape))
            result[block.tokens] = block.unpadded(outputs)
    return result.view(query.shape)


@_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("lightning_pspo::attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, leaves: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, as (S, L, H, D) each."""
    sequences, length, heads, _ = query.shape
    layout = _Layout(key.shape[2], query.dtype)
    of_results, *states = (tensor.flatten(0, 1) for tensor in (gradient, query, key, value))
    totals = [tensor.new_zeros(tensor.shape, dtype=layout.dtype) for tensor in states]
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(leaves, sequences, length, heads):
            of_outputs = block.padded(of_results)
            by_query, by_key, by_value = own = [total.new_zeros(*block.shape, *total.shape[1:]) for total in totals]
            for part, inputs in _inputs(block, layout, states, scale):
                rows, weights = layout(of_outputs[:, part]), inputs.weights(part.stop - part.start)
                by_scores = torch._softmax_backward_data(inputs.products(rows, 1), weights, -1, layout.dtype)
                by_query[:, part] = layout.back(inputs.sums(by_scores, 0).mul_(scale), by_query[:, part].shape)
                for total, sums, factors, others in (
                    (totals[1], by_key, by_scores, inputs.queries),
                    (totals[2], by_value, weights, rows),
                ):
                    of_trunk, of_own = inputs.sums_of_queries(factors, others)
                    total[block.trunk] += layout.back(of_trunk, (1, *total[block.trunk].shape)).squeeze(0)
                    sums[:, : part.stop] += layout.back(of_own, sums[:, : part.stop].shape)
            for total, sums in zip(totals, own, strict=True):
                total[block.tokens] += block.unpadded(sums)
    by_states = zip(totals, (query, key, value), strict=True)
    return tuple(total.view(states.shape).to(states.dtype) for total, states in by_states)  # type: ignore[return-value]


@_backward.register_fake
def _(gradient: Tensor, *states: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in states[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, ctx.scale, leaves = inputs
    ctx.save_for_backward(query, key, value, leaves)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, leaves = ctx.saved_tensors
    return *_backward(gradient, query, key, value, ctx.scale, leaves), None, None


_attention.register_autograd(_differentiate, setup_context=_save)
