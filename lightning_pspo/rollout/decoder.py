"""Decoding steps of Llama's family in bfloat16 on a CPU, without the calls of the model's own modules.

A step of a small model for some dozen rows is short: the calls around its products took a sixth of it. Here the
products of gate and up are one, and states stay (n, hidden); each number is rounded where the model rounds it. Queries,
keys and values stay three products: joined ones sum in another order from some hundred rows on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.policy.cast_linears import PACKED_ROWS, can_join, joined
from lightning_pspo.rollout.prefix_attention import SharedPrefix

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models of transformers that compute what ``Decoder`` does."""


def can_decode(model: PreTrainedModel, rows: int) -> bool:
    """Tell whether a ``Decoder`` can take the steps of a model that can share prompts: plain, and packed."""
    kind = type(model)
    return (
        rows <= PACKED_ROWS
        and kind.__name__ in FAMILY
        and kind.__module__.startswith("transformers.models.")
        and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        and can_join(*(module for module in model.modules() if hasattr(module, "in_features")))
    )


class Decoder:
    """Feeds one token per row through a model, while its linear layers are packed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.layers = [_Layer(layer) for layer in self.model.model.layers]
        self.head = joined(self.model.lm_head)

    def step(self, prefix: SharedPrefix, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append tokens, (n,) long, to the completions of ``prefix``; return the (n, V) logits of the next ones."""
        base = self.model.model
        states = base.embed_tokens(tokens)
        cos, sin = base.rotary_emb(states, positions.unsqueeze(0))  # (1, n, width)
        cos, sin = cos.transpose(0, 1), sin.transpose(0, 1)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        with torch.autocast("cpu", enabled=False):
            for index, layer in enumerate(self.layers):
                states = layer.step(prefix, index, states, cos, sin)
            logits: Tensor = self.head(base.norm(states).bfloat16())
        return logits


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.attention = layer, attention
        self.inputs = [joined(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.output = joined(attention.o_proj)
        self.gate_up = joined(mlp.gate_proj, mlp.up_proj)
        self.down = joined(mlp.down_proj)

    def step(self, prefix: SharedPrefix, index: int, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (n, hidden) to (n, hidden); the second half of a head is the first in ``sin``'s sign."""
        attention = self.attention
        inputs = self.layer.input_layernorm(states).bfloat16()
        heads = (product(inputs).view(len(states), -1, attention.head_dim) for product in self.inputs)
        query, key, value = heads  # each (n, heads, width)
        groups, key_heads = attention.num_key_value_groups, key.shape[1]
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        turned = torch.cat([query, key], dim=1)
        turned = turned * cos + turned.roll(attention.head_dim // 2, -1) * sin
        query, key = torch.split(turned.bfloat16(), [groups * key_heads, key_heads], dim=1)
        keys, values = prefix.own.update(key.unsqueeze(2), value.unsqueeze(2), index)
        query = query.reshape(len(states), key_heads, groups, -1)
        mixed = prefix.attend(index, query, keys, values, attention.scaling)
        states = states + self.output(mixed.reshape(len(states), -1))
        gate, up = self.gate_up(self.layer.post_attention_layernorm(states).bfloat16()).chunk(2, dim=1)
        return states + self.down(self.layer.mlp.act_fn(gate).mul_(up))
