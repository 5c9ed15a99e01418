"""What differs between strategies: where the weights are in a pass, while sampling, and in an optimiser step."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.stored import StoredFormat, format_of

Check = Callable[[Tensor], None]
"""Raises if a gradient norm, (), is not one to step with."""


class Sharding(ABC):
    """How the weights of a model lie on the ranks of a strategy.

    Args:
        strategy: Of the trainer; its environment may not be set up yet. None without a trainer.
        max_norm: Bound of the gradient's norm over all ranks, greater than 0; None for none.
    """

    strategies: ClassVar[tuple[type[Strategy], ...]] = ()  # Lightning's, which spread weights this way
    sharded: ClassVar[bool] = True
    """Whether the weights are spread over the ranks, which then run every forward pass together: each equally many."""
    reads: ClassVar[tuple[StoredFormat, ...]] = (StoredFormat.FILE,)  # formats of a checkpoint that they load

    def __init__(self, *, strategy: Strategy | None = None, max_norm: float | None = None) -> None:
        self.strategy: Any = strategy
        self.max_norm = max_norm

    @abstractmethod
    def check(self) -> None:
        """Refuse options of the strategy that the training loop cannot honour."""

    def check_checkpoint(self, path: Path, adapters: bool) -> None:
        """Refuse a checkpoint that the strategy cannot load into a run that trains adapters, or all weights."""
        stored_format = format_of(path)
        if stored_format not in self.reads:
            readable = " or ".join(readable_format.value for readable_format in self.reads)
            raise InputError(
                f"`ckpt_path` must be {readable} under {type(self.strategy).__name__}, got {stored_format.value}, "
                f"{path}: continue under the strategy that saved it, on any number of devices, or export it."
            )

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse an optimiser that cannot step weights that are spread over the ranks."""
        if self.sharded and type(optimizer).__module__.startswith("bitsandbytes"):
            raise InputError(
                f"`model.optimizer` must not be bitsandbytes' {type(optimizer).__name__} under "
                f"{type(self.strategy).__name__}, whose weights it cannot read: use torch.optim.AdamW, or DDP."
            )

    @abstractmethod
    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Spread a model over the ranks; return the module that replaces it, the ``root`` of the other methods."""

    def unwrapped(self, root: nn.Module) -> PreTrainedModel:
        """Return the transformers model in a root."""
        return cast(PreTrainedModel, root)

    def run(self, root: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(model, *arguments)``, run as one forward pass: it may use any part of the model."""
        return function(self.unwrapped(root), *arguments)

    @abstractmethod
    def gathered(self, root: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Give every rank all weights within the block, so that it can run passes on its own.

        Every rank must enter. Changes to the weights in the block are lost.
        """

    def name_of(self, name: str) -> str:
        """Return a parameter's name as it is in the model before ``shard``."""
        return name

    def without_sync(self, block: bool) -> contextlib.AbstractContextManager[None]:
        """Keep ranks from exchanging gradients in a backward pass, if ``block`` and if that saves anything."""
        return contextlib.nullcontext()

    def step(self, optimizer: Any, root: nn.Module, parameters: Sequence[nn.Parameter], check: Check) -> Tensor:
        """Clip the gradient and take the optimiser's step; return the norm before clipping, () detached.

        ``check`` is called with that norm before the step.
        """
        norm = self._clip(root, parameters, float("inf") if self.max_norm is None else self.max_norm)
        check(norm)
        optimizer.step()
        return norm

    def _clip(self, root: nn.Module, parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, bound).detach()


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of a model that are gathered one at a time, in order; refuse a model that names none."""
    names = set(model._no_split_modules or ())
    parts = [part for part in model.modules() if type(part).__name__ in names]
    if not parts:
        raise InputError(f"`trainer.strategy` must not be sharded: {type(model).__name__} does not name its layers.")
    return parts
