"""Decoding steps of Llama's family in bfloat16 on a CPU: the model's own products, and what lies between them in C.

A step of a small model for some dozen rows is short. Its products have the model's bits; what lies between them took as
long as they did, in a dozen passes over the states of a layer, and is rounded less often here. The products of gate and
up are one. Queries, keys and values stay three products: joined ones sum in another order from some hundred rows on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.policy.cast_linears import PACKED_ROWS, can_join, joined
from lightning_pspo.rollout import native
from lightning_pspo.rollout.prefix_attention import SharedPrefix

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models of transformers that compute what ``Decoder`` does, but for its rounding."""


def can_decode(model: PreTrainedModel, rows: int) -> bool:
    """Tell whether a ``Decoder`` can take the steps of a model that can share prompts: plain, and packed."""
    kind, config, modules = type(model), model.config, list(model.modules())
    return (
        rows <= PACKED_ROWS
        and kind.__name__ in FAMILY
        and kind.__module__.startswith("transformers.models.")
        and config.hidden_act == "silu"
        and native.has_room(config)
        and model.get_input_embeddings().weight.dtype in (torch.float32, torch.bfloat16)
        and all(type(module).__module__.startswith(("transformers.", "torch.nn.")) for module in modules)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        and can_join(*(module for module in modules if hasattr(module, "in_features")))
        and native.library() is not None
    )


class Decoder:
    """Feeds one token per row through a model, while its linear layers are packed and its weights stay the same."""

    def __init__(self, model: PreTrainedModel, prefix: SharedPrefix) -> None:
        self.model: Any = model
        self.prefix = prefix
        stored = prefix.prompts.keys
        for index in range(len(stored)):  # each is freed before the next is arranged
            stored[index] = native.blocked(stored[index])
        self.layers = [_Layer(layer) for layer in self.model.model.layers]
        self.norm = _Norm(self.model.model.norm)
        self.head = joined(self.model.lm_head)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append tokens, (n,) long, to the completions; return the (n, V) logits of the next ones."""
        base = self.model.model
        states = base.embed_tokens(tokens)
        cos, sin = (part[0].float() for part in base.rotary_emb(states, positions.unsqueeze(0)))  # (n, width)
        change = None
        with torch.autocast("cpu", enabled=False):
            for index, layer in enumerate(self.layers):
                change = layer.step(self.prefix, index, states, change, cos, sin)
            logits: Tensor = self.head(self.norm(states, change))
        return logits


class _Norm:
    def __init__(self, norm: Any) -> None:
        self.weight = norm.weight.float()
        self.epsilon = norm.variance_epsilon

    def __call__(self, states: Tensor, change: Tensor | None) -> Tensor:
        return native.add_norm(states, change, self.weight, self.epsilon)


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.inputs = [joined(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.head_norms: dict[str, Any] = {}
        if hasattr(attention, "q_norm"):
            query, key = _Norm(attention.q_norm), _Norm(attention.k_norm)
            self.head_norms = {"query_norm": query.weight, "key_norm": key.weight, "epsilon": query.epsilon}
        self.output = joined(attention.o_proj)
        self.gate_up = joined(mlp.gate_proj, mlp.up_proj)
        self.down = joined(mlp.down_proj)
        self.width, self.scale = attention.head_dim, attention.scaling

    def step(
        self, prefix: SharedPrefix, index: int, states: Tensor, change: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Add the last layer's change and this one's attention to (n, hidden) states; return its other change."""
        inputs = self.input_norm(states, change)
        queries, keys, values = (product(inputs) for product in self.inputs)
        own: Any = prefix.own.layers[index]
        length = own.length
        own.append_room(len(keys), keys.shape[1] // self.width, self.width)
        mixed = native.attend(
            queries=queries,
            keys=keys,
            values=values,
            cosines=cos,
            sines=sin,
            own_keys=own.keys,
            own_values=own.values,
            prompt_keys=prefix.prompts.keys[index],
            prompt_values=prefix.prompts.values[index],
            groups=prefix.groups,
            starts=prefix.starts,
            length=length,
            scale=self.scale,
            **self.head_norms,
        )
        inputs = self.mlp_norm(states, self.output(mixed))
        return self.down(native.silu_times(self.gate_up(inputs)))
