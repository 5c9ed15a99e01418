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
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lightning_pspo.policy.head import compute_dtype

SHORT = 192
"""Tokens of a sequence without branches from which on PyTorch's kernel is faster."""
SCORES = 2**18
"""Scores of a block for each thread: 1 MiB."""


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
    """Sequences side by side that continue the same trunk, which may be empty: places in flat tokens, (S * L, ...)."""

    trunk: slice
    tokens: slice
    lengths: Sequence[int]  # of the sequences, together ``tokens``

    @property
    def width(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    def padded(self, states: Tensor) -> Tensor:
        """Take the tokens of (S * L, heads, D) states: (sequences * width, heads, D), 0 behind each sequence's end."""
        states = states[self.tokens]
        if len(states) == len(self.lengths) * self.width:
            return states
        result = states.new_zeros(len(self.lengths) * self.width, *states.shape[1:])
        result[self._real] = states
        return result

    def unpadded(self, states: Tensor) -> Tensor:
        """Undo ``padded``."""
        return states if len(states) == self.tokens.stop - self.tokens.start else states[self._real]

    @property
    def _real(self) -> Tensor:
        return (torch.arange(self.width) < torch.tensor(self.lengths).unsqueeze(1)).flatten()


def _blocks(leaves: Tensor | None, sequences: int, length: int, heads: int) -> Iterator[_Block]:
    """Cut S sequences of L tokens, or trees with these leaves, into blocks of at most ``SCORES`` scores if they can."""
    most = SCORES * torch.get_num_threads()
    if leaves is None:
        size = max(1, most // (heads * length * length))
        for first in range(0, sequences, size):
            count = min(size, sequences - first)
            yield _Block(slice(0, 0), slice(first * length, (first + count) * length), [length] * count)
        return
    for tree, members in itertools.groupby(leaves.tolist(), key=itemgetter(0)):
        _, starts, lengths, (trunk_length, *_) = zip(*members, strict=True)
        trunk = slice(tree * length, tree * length + trunk_length)
        yield _Block(slice(0, 0), trunk, [trunk_length])
        size = max(1, most // (heads * max(1, *lengths) * (trunk_length + max(lengths))))
        for first in range(0, len(lengths), size):
            part = lengths[first : first + size]
            start = tree * length + starts[first]
            if any(part):
                yield _Block(trunk, slice(start, start + sum(part)), part)


class _Layout:
    """Between (tokens, heads, D) of m sequences of W tokens and (k, m * r * W, D), with r heads for each of k keys'."""

    def __init__(self, keys: int, dtype: torch.dtype) -> None:
        self.keys = keys
        self.dtype = torch.promote_types(dtype, torch.float32)

    def __call__(self, states: Tensor, sequences: int = 1) -> Tensor:
        tokens, heads, width = states.shape
        rows = states.view(sequences, tokens // sequences, self.keys, heads // self.keys, width).permute(2, 0, 3, 1, 4)
        return torch.empty(rows.shape, dtype=self.dtype).copy_(rows).view(self.keys, -1, width)

    def back(self, rows: Tensor, heads: int, sequences: int = 1) -> Tensor:
        """Undo it, but for the dtype."""
        states = rows.view(self.keys, sequences, heads // self.keys, -1, rows.shape[-1]).permute(1, 3, 0, 2, 4)
        return states.reshape(-1, heads, rows.shape[-1])


class _Inputs:
    """Queries, keys and values of a block, and how it attends: one softmax over the trunk and a token's own sequence.

    With k key heads, r query heads for each, m sequences of W tokens and a trunk of P: ``queries`` are scaled,
    (k, m * r * W, D), the trunk's keys and values (k, P, D), and the sequences' own (k * m, W, D).
    """

    def __init__(self, block: _Block, layout: _Layout, states: Sequence[Tensor], scale: float) -> None:
        query, *others = states
        count = len(block.lengths)
        self.queries = layout(block.padded(query), count).mul_(scale)
        self.trunk = [layout(tensor[block.trunk]) for tensor in others]
        own = [layout(block.padded(tensor), count) for tensor in others]
        self.own = [tensor.view(-1, block.width, tensor.shape[-1]) for tensor in own]

    def apart(self, rows: Tensor) -> Tensor:
        """View (k, m * r * W, D) as (k * m, r * W, D)."""
        return rows.view(len(self.own[0]), -1, rows.shape[-1])

    def parts(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """View (k * m, r * W, P + W) as the trunk's part, (k, m * r * W, P), and the rest, (k * m, r * W, W)."""
        length = self.trunk[0].shape[1]
        return scores[..., :length].view(*self.queries.shape[:2], length), scores[..., length:]

    def products(self, rows: Tensor, kind: int) -> Tensor:
        """Return the products of (k, m * r * W, D) with all keys (0) or values (1): (k * m, r * W, P + W)."""
        trunk, own, apart = self.trunk[kind], self.own[kind], self.apart(rows)
        result = rows.new_empty(*apart.shape[:2], trunk.shape[1] + own.shape[1])
        of_trunk, of_own = self.parts(result)
        torch.bmm(rows, trunk.mT, out=of_trunk)
        torch.bmm(apart, own.mT, out=of_own)
        return result

    def weights(self) -> Tensor:
        """Return the softmax of the scores, (k * m, r * W, P + W)."""
        scores = self.products(self.queries, 0)
        width = self.own[0].shape[1]
        later = torch.ones(width, width, dtype=torch.bool).triu(1)
        _, of_own = self.parts(scores)
        torch.unflatten(of_own, 1, (-1, width)).masked_fill_(later, -torch.inf)
        return scores.softmax(dim=-1)

    def sums(self, weights: Tensor, kind: int) -> Tensor:
        """Return the sums of all keys (0) or values (1), (k * m, r * W, D), weighed by (k * m, r * W, P + W)."""
        of_trunk, of_own = self.parts(weights)
        return self.apart(torch.bmm(of_trunk, self.trunk[kind])).baddbmm_(of_own, self.own[kind])

    def sums_of_queries(self, weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for the trunk's keys and for the others, the sums of (k, m * r * W, D) rows of the queries."""
        of_trunk, of_own = self.parts(weights)
        return torch.bmm(of_trunk.mT, rows), torch.bmm(of_own.mT, self.apart(rows))


@torch.library.custom_op("lightning_pspo::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float, leaves: Tensor | None) -> Tensor:
    """Map (S, L, H, D) queries, and keys and values of fewer heads, to (S, L, H, D); 0 for a tree's padding."""
    sequences, length, heads, _ = query.shape
    layout = _Layout(key.shape[2], query.dtype)
    states = [tensor.flatten(0, 1) for tensor in (query, key, value)]
    result = torch.zeros_like(states[0])
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(leaves, sequences, length, heads):
            inputs = _Inputs(block, layout, states, scale)
            sums = layout.back(inputs.sums(inputs.weights(), 1), heads, len(block.lengths))
            result[block.tokens] = block.unpadded(sums)
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
    keys = key.shape[2]
    layout = _Layout(keys, query.dtype)
    states = [tensor.flatten(0, 1) for tensor in (query, key, value)]
    of_outputs = gradient.flatten(0, 1)
    by_query, by_key, by_value = (tensor.new_zeros(tensor.shape, dtype=layout.dtype) for tensor in states)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(leaves, sequences, length, heads):
            inputs, count = _Inputs(block, layout, states, scale), len(block.lengths)
            rows = layout(block.padded(of_outputs), count)
            weights = inputs.weights()
            by_scores = torch._softmax_backward_data(inputs.products(rows, 1), weights, -1, layout.dtype)
            by_query[block.tokens] = block.unpadded(layout.back(inputs.sums(by_scores, 0).mul_(scale), heads, count))
            for total, factors, others in ((by_key, by_scores, inputs.queries), (by_value, weights, rows)):
                of_trunk, of_own = inputs.sums_of_queries(factors, others)
                total[block.trunk] += layout.back(of_trunk, keys)
                total[block.tokens] += block.unpadded(layout.back(of_own, keys, count))
    by_states = zip((by_query, by_key, by_value), (query, key, value), strict=True)
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
