"""Decoding steps of Llama's family in bfloat16 on a CPU, without the calls of the model's own modules.

A step of a small model for some dozen rows is short, and calls around its products take much of it. Here a layer is one
function of tensors, compiled once for all layers if asked for; otherwise it rounds each number where the model does.
The products of gate and up are one. Those of queries, keys and values are only one in a compiled step, as joined ones
sum in another order from some hundred rows on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from lightning_pspo.policy.cast_linears import PACKED_ROWS, Packed, can_join, joined
from lightning_pspo.policy.compiled import BACKEND, as_compiled
from lightning_pspo.policy.location import first_line
from lightning_pspo.rollout.prefix_attention import SharedPrefix, merged

logger = logging.getLogger(__name__)

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models of transformers that compute what ``Decoder`` does."""

Layer = Callable[..., Tensor]
"""Maps the (n, hidden) states before a layer to those behind it; see ``layer_of``."""

products: list[Packed] = []
"""Of the layer that is being computed: of queries, keys and values, as one or three; output; gate and up; down.

A compiler cannot take packed weights as arguments.
"""

_operators = torch.library.Library("lightning_pspo", "DEF")  # type: ignore[no-untyped-call]
_operators.define("product(Tensor states, int index, int width) -> Tensor")  # type: ignore[no-untyped-call]
_operators.impl(  # type: ignore[no-untyped-call]
    "product", lambda states, index, width: products[index](states), "CPU"
)
torch.library.register_fake(
    "lightning_pspo::product", lambda states, index, width: states.new_empty(states.shape[0], width), lib=_operators
)


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


@dataclass(frozen=True)
class Shape:
    """What all layers of a model have in common."""

    key_heads: int
    groups: int  # query heads per key head
    width: int  # of a head
    hidden: int
    inner: int  # outputs of gate, and of up
    scaling: float  # of attention's scores
    epsilon: float
    activation: str
    norms_heads: bool  # whether queries and keys are normalised
    joins: bool  # whether the products of queries, keys and values are one

    @property
    def heads(self) -> list[int]:
        """Numbers of heads of queries, keys and values."""
        return [self.key_heads * self.groups, self.key_heads, self.key_heads]


@functools.cache
def layer_of(shape: Shape) -> Layer:
    """Return a step of a layer as a function of tensors, whose products are those in ``products``."""
    width, heads = shape.width, shape.heads
    parts = [sum(heads)] if shape.joins else heads
    activation, product = ACT2FN[shape.activation], torch.ops.lightning_pspo.product.default

    def normed(states: Tensor, weight: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + shape.epsilon)
        return weight * wide.to(states.dtype)

    def layer(
        states: Tensor,  # (n, hidden)
        norms: tuple[Tensor, ...],  # weights: before attention, before the MLP; of queries and keys
        cos: Tensor,  # (n, width)
        sin: Tensor,  # (n, width), negative in the first half
        own: tuple[Tensor, Tensor],  # keys and values, (n, key heads, t, width); the last token is written here
        prompts: tuple[Tensor, Tensor],  # this and the rest as ``merged`` takes them
        bias: Tensor | None,
        rows: Tensor,
        slots: Tensor,
    ) -> Tensor:
        inputs = normed(states, norms[0]).bfloat16()
        mixed = torch.cat([product(inputs, index, part * width) for index, part in enumerate(parts)], dim=1)
        query, key, value = torch.split(torch.unflatten(mixed, 1, (-1, width)), heads, dim=1)  # (n, heads, width)
        if shape.norms_heads:
            query, key = normed(query, norms[2]), normed(key, norms[3])
        turned = torch.cat([query, key], dim=1)
        turned = (turned * cos.unsqueeze(1) + turned.roll(width // 2, -1) * sin.unsqueeze(1)).bfloat16()
        query, key = torch.split(turned, heads[:2], dim=1)
        own[0][:, :, -1] = key
        own[1][:, :, -1] = value
        query = torch.unflatten(query, 1, (shape.key_heads, shape.groups))
        mixed = merged(query, own, prompts, bias, rows, slots, shape.scaling).flatten(1)
        states = states + product(mixed, len(parts), shape.hidden)
        gate_up = product(normed(states, norms[1]).bfloat16(), len(parts) + 1, 2 * shape.inner)
        gate, up = gate_up.chunk(2, dim=1)
        down: Tensor = product(activation(gate) * up, len(parts) + 2, shape.hidden)
        return states + down

    return layer


@functools.cache
def compiled_layer(shape: Shape, dtype: torch.dtype, threads: int) -> Layer | None:
    """Compile ``layer_of`` for states of a dtype, which takes seconds; None, with a warning, if that fails.

    What is compiled serves all sizes but 1. It is compiled at sizes that are always the same, so that a resumed run
    computes with the same code, and all different, as equal ones would count as one. Threads are those of torch.
    """
    rows, tokens, prompts, slots, prompt_tokens = 61, 67, 7, 9, 53
    width, key_heads, hidden = shape.width, shape.key_heads, shape.hidden

    def zeros(*sizes: int, varying: tuple[int, ...] = (0,), dtype: torch.dtype = torch.bfloat16) -> Tensor:
        tensor = torch.zeros(sizes, dtype=dtype)
        torch._dynamo.mark_dynamic(tensor, varying)
        return tensor

    def cached() -> Tensor:
        tensor = torch.zeros(rows, key_heads, 2 * tokens, width, dtype=torch.bfloat16)[:, :, :tokens]
        torch._dynamo.mark_dynamic(tensor, (0, 2))
        return tensor

    def prompt() -> Tensor:
        return zeros(prompts, key_heads, prompt_tokens, width, varying=(0, 2))

    sizes = [(hidden, sum(shape.heads) * width), (shape.heads[0] * width, hidden), (hidden, 2 * shape.inner)]
    sizes.append((shape.inner, hidden))
    products[:] = [Packed(torch.zeros(outputs, inputs).bfloat16(), None) for inputs, outputs in sizes]
    norms = tuple(
        torch.zeros(size, dtype=dtype) for size in (hidden, hidden, width, width)[: 4 if shape.norms_heads else 2]
    )
    function: Layer = torch.compile(layer_of(shape), dynamic=False, fullgraph=True, backend=BACKEND)
    try:
        function(
            zeros(rows, hidden, dtype=dtype),
            norms,
            zeros(rows, width, dtype=dtype),
            zeros(rows, width, dtype=dtype),
            (cached(), cached()),
            (prompt(), prompt()),
            zeros(prompts, 1, 1, prompt_tokens, varying=(0, 3)),
            zeros(prompts, slots, varying=(0, 1), dtype=torch.long),
            zeros(rows, dtype=torch.long),
        )
    except Exception as error:  # whatever a compiler, or its absence, may raise
        logger.warning("Decoding steps are not compiled, and slower: %s", first_line(error))
        return None
    return function


class Decoder:
    """Feeds one token per row through a model, while its linear layers are packed.

    Args:
        model: That ``can_decode``.
        prefix: What the rows continue.
        compiles: Compile the layers, which rounds fewer numbers to bfloat16 in between.
    """

    def __init__(self, model: PreTrainedModel, prefix: SharedPrefix, *, compiles: bool = False) -> None:
        self.model: Any = model
        self.prefix = prefix
        first = self.model.model.layers[0]
        attention = first.self_attn
        shape = Shape(
            key_heads=self.model.config.num_key_value_heads,
            groups=attention.num_key_value_groups,
            width=attention.head_dim,
            hidden=self.model.config.hidden_size,
            inner=first.mlp.gate_proj.out_features,
            scaling=attention.scaling,
            epsilon=self.model.config.rms_norm_eps,
            activation=self.model.config.hidden_act,
            norms_heads=hasattr(attention, "q_norm"),
            joins=compiles,
        )
        self.shape, self.plain = shape, layer_of(shape)
        self.compiled: Layer | None = None
        if compiles:
            with torch.autocast("cpu", enabled=False), as_compiled():
                self.compiled = compiled_layer(shape, model.dtype, torch.get_num_threads())
            prefix.least_width = 2
            prefix.arrange()
        self.layers = [_Layer(layer, shape) for layer in self.model.model.layers]
        self.head = joined(self.model.lm_head)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append tokens, (n,) long, to the completions; return the (n, V) logits of the next ones."""
        base, prefix = self.model.model, self.prefix
        states = base.embed_tokens(tokens)
        cos, sin = (angles.squeeze(0) for angles in base.rotary_emb(states, positions.unsqueeze(0)))  # (n, width)
        half = self.shape.width // 2
        sin = torch.cat([-sin[:, :half], sin[:, half:]], dim=1)
        layer, bias = self.plain, prefix.bias
        mask = prefix.prompts.mask
        if self.compiled is not None and min(len(tokens), *mask.shape, prefix.own.get_seq_length() + 1) > 1:
            layer = self.compiled
            bias = torch.zeros(len(mask), 1, 1, mask.shape[1]) if bias is None else bias
        bias = None if bias is None else bias.bfloat16()
        with torch.autocast("cpu", enabled=False), as_compiled() if layer is self.compiled else nullcontext():
            for index, weights in enumerate(self.layers):
                products[:] = weights.products
                own = prefix.own.layers[index]
                prompts = prefix.prompts.keys[index], prefix.prompts.values[index]
                states = layer(
                    states,
                    weights.norms,
                    cos,
                    sin,
                    self._extended(own, states),
                    prompts,
                    bias,
                    prefix.rows,
                    prefix.slots,
                )
            logits: Tensor = self.head(base.norm(states).bfloat16())
        return logits

    def _extended(self, own: Any, states: Tensor) -> tuple[Tensor, Tensor]:
        if not own.is_initialized:
            empty = states.new_empty(len(states), self.shape.key_heads, 0, self.shape.width)
            own.lazy_initialization(empty, empty)
        extended: tuple[Tensor, Tensor] = own.extend(1)
        return extended


class _Layer:
    """The weights of a layer."""

    def __init__(self, layer: Any, shape: Shape) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        inputs = attention.q_proj, attention.k_proj, attention.v_proj
        self.products = [joined(*inputs)] if shape.joins else [joined(linear) for linear in inputs]
        self.products += [joined(attention.o_proj), joined(mlp.gate_proj, mlp.up_proj), joined(mlp.down_proj)]
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [attention.q_norm, attention.k_norm] if shape.norms_heads else []
        self.norms = tuple(norm.weight.detach() for norm in norms)
