"""What is refused before any work starts: numbers out of range, and Trainer settings that the loop cannot honour."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_pspo.types import InputError

PRECISIONS = ("32-true", "bf16-mixed")
"""bfloat16 weights would lose small updates; float16 needs a loss scale that this loop does not keep."""


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Raise InputError if ``value`` is below ``minimum``."""
    if value < minimum:
        raise InputError(f"`{name}` must be at least {minimum}, got {value}.")


def check_trainer(trainer: Trainer) -> None:
    """Refuse a strategy or precision that the loop does not support.

    Raises:
        InputError: Naming the setting.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(
            f"`trainer.strategy` must be a single device or DDP, got {type(trainer.strategy).__name__}: "
            "sharded strategies are not supported yet."
        )
    if trainer.precision not in PRECISIONS:
        raise InputError(f"`trainer.precision` must be one of {', '.join(PRECISIONS)}, got {trainer.precision}.")


def check_fit(trainer: Trainer) -> None:
    """Refuse settings that would cut or repeat a run, or that forbid a backward pass.

    Raises:
        InputError: Naming the setting.
    """
    length = "`data.num_rollouts` sets the length"
    if trainer.max_epochs != 1:
        raise InputError(f"`trainer.max_epochs` must be 1 ({length}), got {trainer.max_epochs}.")
    if trainer.max_steps != -1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise InputError(f"`trainer.max_steps` must be -1 ({length}), got {trainer.max_steps}.")
    if trainer.validate_loop.inference_mode:
        raise InputError("`trainer.inference_mode` must be false: inference tensors cannot enter a backward pass.")
