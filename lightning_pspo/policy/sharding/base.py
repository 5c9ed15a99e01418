"""What differs between strategies: where the weights are in a pass, while sampling, and in an optimiser step."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.stored import Layout, layout_of

Check = Callable[[Tensor], None]
"""Raises if a gradient norm, (), is not one to step with."""


class Sharding(ABC):
    """How the weights of a model lie on the ranks of a strategy.

    Args:
        strategy: Of the trainer; its environment may not be set up yet. None without a trainer.
        max_norm: Bound of the gradient's norm over all ranks, greater than 0; None for none.

    Attributes:
        sharded: Whether the weights are spread over the ranks. A forward pass is then one of all ranks together, and
            every rank must run equally many.
        reads: How a checkpoint may be stored.
    """

    sharded = True
    reads: tuple[Layout, ...] = (Layout.FILE,)

    def __init__(self, strategy: Strategy | None = None, max_norm: float | None = None) -> None:
        self.strategy: Any = strategy
        self.max_norm = max_norm

    @abstractmethod
    def check(self) -> None:
        """Refuse options of the strategy that the training loop cannot honour.

        Raises:
            InputError: Naming the option.
        """

    def check_checkpoint(self, path: Path, adapters: bool) -> None:
        """Refuse a checkpoint that the strategy cannot load.

        Args:
            path: The checkpoint.
            adapters: Whether it is of a run that trains adapters.

        Raises:
            InputError: Saying how it is stored, and what can be loaded.
        """
        layout = layout_of(path)
        if layout not in self.reads:
            readable = " or ".join(one.value for one in self.reads)
            raise InputError(
                f"`ckpt_path` must be {readable} under {type(self.strategy).__name__}, got {layout.value}, {path}: "
                "continue under the strategy that saved it, on any number of devices, or export it."
            )

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Within the block whole models are made, whatever the strategy does to new modules."""
        yield

    @abstractmethod
    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Spread a whole model over the ranks; return the module that takes its place."""

    def bare(self, place: nn.Module) -> PreTrainedModel:
        """Return the transformers model in a module that ``shard`` returned."""
        return cast(PreTrainedModel, place)

    def run(self, place: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(model, *arguments)``, run as one forward pass: it may use any part of the model.

        Args:
            place: What ``shard`` returned.
            function: Its first argument is the transformers model.
            arguments: The others.
        """
        return function(self.bare(place), *arguments)

    @abstractmethod
    def whole(self, place: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within the block every rank has all weights, and passes need no other rank. Every rank must enter it.

        Weights that are changed in the block are lost.
        """

    def name_of(self, name: str) -> str:
        """Return a parameter's name as it is in the model before ``shard``."""
        return name

    def without_sync(self, block: bool) -> contextlib.AbstractContextManager[None]:
        """Keep ranks from exchanging gradients in a backward pass, if ``block`` and if that saves anything."""
        return contextlib.nullcontext()

    def step(self, optimizer: Any, place: nn.Module, parameters: Sequence[nn.Parameter], check: Check) -> Tensor:
        """Clip the gradient and take the optimiser's step.

        Args:
            optimizer: Lightning's.
            place: What ``shard`` returned.
            parameters: Those that are trained.
            check: Called with the norm, before the step where the norm is known then.

        Returns:
            The norm before clipping, () detached.
        """
        norm = self._clip(place, parameters, float("inf") if self.max_norm is None else self.max_norm)
        check(norm)
        optimizer.step()
        return norm

    def _clip(self, place: nn.Module, parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, bound).detach()


def leave_batches(strategy: Strategy) -> None:
    """Keep Lightning from casting the numbers of a batch, as its plugins for FSDP1 and DeepSpeed do.

    Ours have no floating ones, and are frozen, which is an error there.
    """
    strategy.precision_plugin.convert_input = lambda data: data  # type: ignore[method-assign]


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of a model that are gathered one at a time, in order.

    Raises:
        InputError: If the model does not say which they are.
    """
    names = set(model._no_split_modules or ())
    found = [part for part in model.modules() if type(part).__name__ in names]
    if not found:
        raise InputError(f"`trainer.strategy` must not be sharded: {type(model).__name__} does not name its layers.")
    return found
