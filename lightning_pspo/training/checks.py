"""Settings of the Trainer that the loop cannot honour, refused before any work starts."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import BitsandbytesPrecision

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding import Sharding, sharding_of

_NOT_LIGHTNINGS = (
    "`trainer.plugins` must not hold BitsandbytesPrecision, which would quantise whatever is trained: for QLoRA set "
    "`model.policy.quantization` and `model.policy.lora`."
)

PRECISIONS = ("32-true", "bf16-mixed")
"""bfloat16 weights would lose small updates; float16 needs a loss scale that this loop does not keep."""


def check_trainer(trainer: Trainer) -> Sharding:
    """Refuse a strategy or precision that the loop does not support.

    Returns:
        How the weights lie under the strategy.

    Raises:
        InputError: Naming the setting.
    """
    sharding = sharding_of(trainer.strategy)
    _check_launched(trainer)
    sharding.check()
    if isinstance(trainer.precision_plugin, BitsandbytesPrecision):
        raise InputError(_NOT_LIGHTNINGS)
    if trainer.precision not in PRECISIONS:
        raise InputError(f"`trainer.precision` must be one of {', '.join(PRECISIONS)}, got {trainer.precision}.")
    return sharding


def _check_launched(trainer: Trainer) -> None:
    """Refuse another number of ranks than torchrun or SLURM has started; else each could be a run of its own."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None and TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
    if environment is None:
        return
    try:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        raise InputError(
            f"`trainer.devices` and `trainer.num_nodes` must be what {type(environment).__name__} has started: {error}"
        ) from error


def check_plugins(named: Any) -> None:
    """Refuse Lightning's own quantisation, from the settings: a Trainer on a CPU could not even be built with it.

    Args:
        named: What is given as ``trainer.plugins``: a class name, an object with ``class_path``, a list of these, None.

    Raises:
        InputError: Naming the setting that takes its place.
    """
    for entry in named if isinstance(named, list) else [named]:
        name = entry if isinstance(entry, str) else getattr(entry, "class_path", "")
        if str(name).rpartition(".")[2] == BitsandbytesPrecision.__name__:
            raise InputError(_NOT_LIGHTNINGS)


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
