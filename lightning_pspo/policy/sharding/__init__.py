"""Strategies, and what the training loop has to do differently for each."""

from __future__ import annotations

from lightning.pytorch.strategies import Strategy, StrategyRegistry

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.base import Sharding
from lightning_pspo.policy.sharding.fsdp1 import FSDP1
from lightning_pspo.policy.sharding.fsdp2 import FSDP2, FSDP2Strategy
from lightning_pspo.policy.sharding.stored import FolderIO, read_folder, refuse_code_in_checkpoints
from lightning_pspo.policy.sharding.unsharded import Unsharded

__all__ = ["FSDP1", "FSDP2", "FSDP2Strategy", "FolderIO", "Sharding", "Unsharded", "read_folder", "sharding_of"]

_SHARDINGS: dict[type[Strategy], type[Sharding]] = {
    strategy: sharding for sharding in (Unsharded, FSDP2, FSDP1) for strategy in sharding.strategies
}

StrategyRegistry.register("fsdp2", FSDP2Strategy, override=True)


def sharding_of(strategy: Strategy, max_norm: float | None = None) -> Sharding:
    """Return how the weights lie under a strategy; from then on the strategy runs no code from a checkpoint.

    A subclass of a strategy counts as the class of Lightning that it comes from; one that the training loop does not
    support is refused. ``max_norm`` bounds the gradient's norm, with None for no bound.
    """
    # DeepSpeed and XLA are subclasses of DDPStrategy that do not do what it does.
    base = next(kind for kind in type(strategy).__mro__ if kind.__module__.startswith("lightning."))
    if base not in _SHARDINGS:
        known = ", ".join(sorted(kind.__name__ for kind in _SHARDINGS))
        raise InputError(f"`trainer.strategy` must be one of {known}, got {type(strategy).__name__}.")
    refuse_code_in_checkpoints(strategy)
    return _SHARDINGS[base](strategy=strategy, max_norm=max_norm)
