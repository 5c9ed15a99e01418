"""Faster attention over completions in bfloat16 on a CPU.

Where completions share their prompt, a mask over the whole tree would have attention look at all pairs of its tokens.
Here queries, keys and values are laid out again in a row for each completion, so that sharing saves in all other parts
of a layer and costs nothing in this one.

PyTorch's backward kernel cuts the queries into parts, and converts all keys and values to its matrix layout again for
each part. Below ``SHORT`` queries the parts are so small that its float32 kernel, which converts nothing, takes half as
long; it rounds less, too. The forward pass is PyTorch's own, to the bit.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lightning_pspo.policy.head import compute_dtype
from lightning_pspo.policy.packing import Unfolding

SHORT = 192
"""Queries from which on PyTorch's kernel takes larger parts."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def is_short(model: PreTrainedModel) -> bool:
    """Tell whether ``short_attention`` pays; not in layers that are run again after its block."""
    name = "is_activation_checkpointing"
    recomputes = getattr(model, name if hasattr(type(model), name) else "is_gradient_checkpointing")
    return model.device.type == "cpu" and compute_dtype(model) == torch.bfloat16 and not recomputes


def short_attention(unfolding: Unfolding | None) -> contextlib.AbstractContextManager[Any]:
    """Use the faster attention in the block, in which the model gets no mask for a tree, but its ``unfolding``."""
    return _ShortAttention(unfolding) if unfolding or torch.is_grad_enabled() else contextlib.nullcontext()


class _ShortAttention(TorchFunctionMode):
    """Catches a model's calls of ``scaled_dot_product_attention``."""

    def __init__(self, unfolding: Unfolding | None = None) -> None:
        super().__init__()
        self.unfolding = unfolding

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **options)
        causal = len(args) == 3 and options.get("is_causal") and options.get("attn_mask") is None
        plain = causal and not options.get("dropout_p") and args[0].dim() == 4 and args[0].shape[3] == args[2].shape[3]
        if self.unfolding is not None and not plain:
            raise RuntimeError("attention over a tree must be plain and causal.")
        if not plain or (self.unfolding is None and args[0].shape[2] >= SHORT):
            return func(*args, **options)
        if torch.is_autocast_enabled(args[0].device.type):
            args = tuple(states.to(torch.get_autocast_dtype(args[0].device.type)) for states in args)
        scale = options.get("scale") or args[0].shape[3] ** -0.5
        return _attention(*args, scale, *(self.unfolding or (None, None, None)))[0].transpose(1, 2)


def _in_rows(states: Tensor, unfolded: Tensor | None) -> Tensor:
    """Map (S, H, L, D) states of trees to (n, H, W, D); those of rows stay."""
    if unfolded is None:
        return states
    width = states.shape[1], states.shape[3]
    return states.transpose(1, 2).flatten(2).flatten(0, 1)[unfolded].view(*unfolded.shape, *width).transpose(1, 2)


@torch.library.custom_op("lightning_pspo::short_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    unfolded: Tensor | None,
    folded: Tensor | None,
    branches: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return (S, L, H, D) outputs, and (n, W, H) logarithms of the softmax's sums."""
    query, key, value = (_in_rows(states, unfolded) for states in (query, key, value))
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    out, total = _flash(query, key, value, 0.0, True, scale=scale)
    out = out.transpose(1, 2)
    if folded is not None:
        out = out.flatten(0, 1)[folded]
    return out.contiguous(), total.transpose(1, 2).contiguous()


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, unfolded: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    sequences, heads, length, width = query.shape
    rows = (sequences, length) if unfolded is None else unfolded.shape
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(sequences, length, heads, width), query.new_empty(*rows, heads, dtype=exact)


@torch.library.custom_op("lightning_pspo::short_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    scale: float,
    unfolded: Tensor | None,
    folded: Tensor | None,
    branches: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, as (S, L, H, D) each."""
    heads = key.shape[1]
    states = [_in_rows(tensor, unfolded) for tensor in (gradient, query, key, value, out)]
    if total.shape[1] < SHORT:
        states = [tensor.to(total.dtype) for tensor in states]
    if unfolded is not None and folded is not None:  # a prompt's outputs are those of the first row of its tree
        elsewhere = folded.flatten()[unfolded] != torch.arange(unfolded.numel()).view_as(unfolded)
        states[0] = states[0].masked_fill(elsewhere[:, None, :, None], 0.0)
    repeats = query.shape[1] // heads
    states[2:4] = (tensor.repeat_interleave(repeats, 1) for tensor in states[2:4])
    gradients = _flash_backward(*states, total.transpose(1, 2), 0.0, True, scale=scale)
    by_query, *others = (tensor.transpose(1, 2) for tensor in gradients)  # (n, W, H, D)
    results = [by_query, *(tensor.unflatten(2, (heads, repeats)).sum(dim=3) for tensor in others)]
    if unfolded is not None and folded is not None and branches is not None:
        results = [_folded(tensor, unfolded, folded, branches) for tensor in results]
    by_query, by_key, by_value = (tensor.to(query.dtype).contiguous() for tensor in results)
    return by_query, by_key, by_value


def _folded(gradients: Tensor, unfolded: Tensor, folded: Tensor, branches: Tensor) -> Tensor:
    """Map (n, W, H, D) gradients to (S, L, H, D): those of a prompt are summed over its rows."""
    result = gradients.flatten(0, 1)[folded].masked_fill_((branches == -2)[:, :, None, None], 0.0)
    is_prompt = branches == -1
    prompt = int(is_prompt.sum(dim=1).max())
    sums = gradients.new_zeros(len(branches), prompt, *gradients.shape[2:])
    sums.index_add_(0, unfolded[:, 0] // branches.shape[1], gradients[:, :prompt])
    result[:, :prompt] = torch.where(is_prompt[:, :prompt, None, None], sums, result[:, :prompt])
    return result


@_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(states.new_empty(states.transpose(1, 2).shape) for states in (query, key, value))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.scale, *layout = inputs
    ctx.save_for_backward(query, key, value, *output, *layout)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, total, *layout = ctx.saved_tensors
    gradients = _backward(gradient.transpose(1, 2), query, key, value, out.transpose(1, 2), total, ctx.scale, *layout)
    return *(tensor.transpose(1, 2) for tensor in gradients), None, None, None, None


_attention.register_autograd(_differentiate, setup_context=_save)
