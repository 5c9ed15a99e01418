"""Strategies, and what the training loop has to do differently for each."""

from __future__ import annotations

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.base import Check, Sharding
from lightning_pspo.policy.sharding.deepspeed import DeepSpeed
from lightning_pspo.policy.sharding.folder_io import FolderIO, read_folder
from lightning_pspo.policy.sharding.fsdp1 import FSDP1
from lightning_pspo.policy.sharding.fsdp2 import FSDP2, FSDP2Strategy
from lightning_pspo.policy.sharding.unsharded import Unsharded

__all__ = [
    "FSDP1",
    "FSDP2",
    "Check",
    "DeepSpeed",
    "FSDP2Strategy",
    "FolderIO",
    "Sharding",
    "Unsharded",
    "read_folder",
    "sharding_of",
]

_SHARDINGS: dict[type[Strategy], type[Sharding]] = {
    DeepSpeedStrategy: DeepSpeed,  # before DDPStrategy, which it is a kind of
    FSDPStrategy: FSDP1,
    ModelParallelStrategy: FSDP2,
    DDPStrategy: Unsharded,
    SingleDeviceStrategy: Unsharded,
}


StrategyRegistry.register("fsdp2", FSDP2Strategy, override=True)


def sharding_of(strategy: Strategy, max_norm: float | None = None) -> Sharding:
    """Return how the weights lie under a strategy.

    Args:
        strategy: Of the trainer.
        max_norm: Bound of the gradient's norm, greater than 0; None for none.

    Raises:
        InputError: If the training loop does not know the strategy.

    >>> type(sharding_of(SingleDeviceStrategy("cpu"))).__name__
    'Unsharded'
    """
    for kind, sharding in _SHARDINGS.items():
        if isinstance(strategy, kind):
            return sharding(strategy, max_norm)
    known = ", ".join(sorted(kind.__name__ for kind in _SHARDINGS))
    raise InputError(f"`trainer.strategy` must be one of {known}, got {type(strategy).__name__}.")
