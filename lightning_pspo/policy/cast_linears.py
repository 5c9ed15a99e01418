"""Linear layers with weights that were cast beforehand, which autocast would cast again in every pass.

The copies stay at the same addresses and are rewritten in place when the optimiser has changed the weights. While
sampling on a CPU, bfloat16 weights are also packed in the order in which oneDNN reads them: it would otherwise spend up
to a third of a product with few rows on reordering. Copies give the bits of plain autocast, packed weights nearly
always: a sum may be rounded in the other direction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

PACKED_ROWS = 512
"""Rows up to which products with packed weights were measured to be faster."""


class Packed:
    """A product of (..., in) bfloat16 states on a CPU with weights, (out, in), in the order that oneDNN reads."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias

    def __call__(self, states: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], ""))


class CastLinear:
    """Stands in for the ``forward`` of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.copies: list[Tensor] = []  # of weight and bias; the weights themselves if they have the dtype
        self.packs = False
        self._packed: dict[int, Packed] = {}  # by the number of layers that are joined, this one the first
        self._swapped: dict[str, nn.Parameter | None] = {}
        self._copied: list[tuple[int, int]] = []  # address and version of the weights that were copied

    def refresh(self, dtype: torch.dtype, packs: bool, changed: bool) -> None:
        """Copy the weights, if they are known or seen to have changed, and forget what was packed."""
        self.packs = packs
        self._packed.clear()
        weights = [weight.detach() for weight in self._weights()]
        copied = [(weight.data_ptr(), weight._version) for weight in weights]
        if not changed and copied == self._copied:
            return
        self._copied = copied
        if [(copy.dtype, copy.device) for copy in self.copies] != [(dtype, weight.device) for weight in weights]:
            self.copies = [weight.to(dtype) for weight in weights]
        for copy, weight in zip(self.copies, weights, strict=True):
            if weight.dtype != dtype:
                copy.copy_(weight)

    def _weights(self) -> list[Tensor]:
        return [self.linear.weight] if self.linear.bias is None else [self.linear.weight, self.linear.bias]

    def swap(self) -> None:
        """Put the copies in the weights' place."""
        self._swapped = dict(self.linear._parameters)
        for name, copy in zip(("weight", "bias"), self.copies, strict=False):
            self.linear._parameters[name] = nn.Parameter(copy, requires_grad=False)

    def swap_back(self) -> None:
        """Put the weights back."""
        self.linear._parameters.update(self._swapped)

    def __call__(self, states: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        weight, *bias = self.copies
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(weight.dtype)
        elif states.dtype != weight.dtype:
            return nn.functional.linear(states, *self._weights())
        if torch.is_grad_enabled():
            tracked = [_Copied.apply(*pair) for pair in zip(self._weights(), self.copies, strict=True)]  # type: ignore[no-untyped-call]
            return nn.functional.linear(states, *tracked)
        is_step = states.dim() == 2 or states.shape[-2] == 1  # other passes are too few to pack for
        if not self.packs or not is_step or states.numel() > PACKED_ROWS * states.shape[-1]:
            return nn.functional.linear(states, weight, *bias)
        return joined(self.linear)(states)


def can_join(*linears: nn.Module) -> bool:
    """Tell whether these are plain linear layers whose products are packed at present."""
    casts = [vars(linear).get("forward") for linear in linears]
    return all(isinstance(cast_linear, CastLinear) and cast_linear.packs for cast_linear in casts)


def joined(*linears: nn.Linear) -> Packed:
    """Return one packed product for layers of the same input, of which all or none have a bias; see ``can_join``."""
    casts: list[Any] = [vars(linear)["forward"] for linear in linears]
    packed: dict[int, Packed] = casts[0]._packed
    if len(casts) not in packed:
        weight, *bias = (torch.cat(copies) for copies in zip(*(other.copies for other in casts), strict=True))
        packed[len(casts)] = Packed(weight, bias[0] if bias else None)
    return packed[len(casts)]


class _Copied(torch.autograd.Function):
    """A weight's copy, whose gradient is the weight's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


class CastLinears:
    """The linear layers of a model that is not sharded."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [CastLinear(module) for module in model.modules() if type(module) is nn.Linear]
        self.changed = True  # whether weights may have changed unseen, as by an optimiser of another package

    @contextlib.contextmanager
    def used(self, device: str, *, sampling: bool) -> Iterator[None]:
        """Compute with the copies within the block, where they save something: under autocast, or packed."""
        casts = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if casts else torch.bfloat16
        packs = sampling and device == "cpu" and dtype == torch.bfloat16 and _can_pack()
        dtypes = {dtype, torch.float32} if casts else {dtype} if packs else set()
        layers = [
            layer
            for layer in self._layers
            if layer.linear.weight.dtype in dtypes and "forward" not in vars(layer.linear)
        ]
        for layer in layers:
            layer.refresh(dtype, packs, self.changed or sampling)
        if layers:  # a callback may swap the weights for those that it has sampled with
            self.changed = sampling
        # A compiled layer takes its weights as they are, but would be compiled again for a `forward` of each module.
        swaps = sampling and device == "cuda"
        try:
            for layer in layers:
                if swaps:
                    layer.swap()
                else:
                    layer.linear.forward = layer  # type: ignore[assignment]
            yield
        finally:
            for layer in layers:
                if swaps:
                    layer.swap_back()
                else:
                    del layer.linear.forward
                layer._packed.clear()


def _can_pack() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
