"""Faster gradients of attention over short sequences in bfloat16 on a CPU.

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

from lightning_pspo.policy.compiled import is_compiled
from lightning_pspo.policy.head import compute_dtype

SHORT = 192
"""Queries from which on PyTorch's kernel takes larger parts."""


def short_attention(model: PreTrainedModel) -> contextlib.AbstractContextManager[Any]:
    """Use the faster gradient in the block where it pays; not in layers that are compiled, or run again later."""
    name = "is_activation_checkpointing"
    recomputes = getattr(model, name if hasattr(type(model), name) else "is_gradient_checkpointing")
    in_bfloat16 = model.device.type == "cpu" and compute_dtype(model) == torch.bfloat16
    pays = in_bfloat16 and torch.is_grad_enabled() and not recomputes and not is_compiled(model)
    return _ShortAttention() if pays else contextlib.nullcontext()


class _ShortAttention(TorchFunctionMode):
    """Catches a model's calls of ``scaled_dot_product_attention``."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention or len(args) != 3 or args[0].shape[2] >= SHORT:
            return func(*args, **(kwargs or {}))
        return _attention(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    unusual = dropout_p or query.dim() != 4 or query.shape[3] != value.shape[3]
    if unusual or (attn_mask is not None and attn_mask.dtype != torch.bool):
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    query, key, value = (states.to(torch.bfloat16) for states in (query, key, value))
    if enable_gqa:
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    out: Tensor = _Attention.apply(query, key, value, bias, is_causal, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float | None
    ) -> Tensor:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
        )
        ctx.save_for_backward(query, key, value, out, total, bias)
        ctx.options = is_causal, scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total, bias = ctx.saved_tensors
        is_causal, scale = ctx.options
        states = (tensor.float() for tensor in (gradient, query, key, value, out))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *states, total, 0.0, is_causal, attn_mask=None if bias is None else bias.float(), scale=scale
        )
        return *(by_states.to(query.dtype) for by_states in gradients), None, None, None
