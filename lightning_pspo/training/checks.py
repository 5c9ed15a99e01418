"""What is refused before any work starts: numbers out of range, and Trainer settings that the loop cannot honour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import BitsandbytesPrecision
from torch.optim import Optimizer

from lightning_pspo.errors import InputError
from lightning_pspo.objective.advantages import Advantage, NoBaseline, SeparateAdvantage
from lightning_pspo.objective.alpha import AlphaController, KLTarget
from lightning_pspo.objective.surrogates import GMPO, PSPO, TOPR, SmoothedSurrogate, Surrogate, check_level
from lightning_pspo.policy.sharding import Sharding, sharding_of

_SCALE_FREE = ("Adam", "NAdam", "RAdam", "SparseAdam", "Adafactor", "RMSprop", "Lion", "PagedAdam", "Adagrad", "Rprop")

_NOT_LIGHTNINGS = (
    "`trainer.plugins` must not hold BitsandbytesPrecision, which would quantise whatever is trained: for QLoRA set "
    "`model.policy.quantization` and `model.policy.lora`."
)

PRECISIONS = ("32-true", "bf16-mixed")
"""bfloat16 weights would lose small updates; float16 needs a loss scale that this loop does not keep."""


def check_bounds(max_grad_norm: float | None, mismatch_cap: float | None, temperature: float) -> None:
    """Refuse bounds and a temperature out of their ranges, which those of ``PSPOModule`` are.

    Raises:
        InputError: Naming the setting.
    """
    if max_grad_norm is not None and not max_grad_norm > 0.0:
        raise InputError(f"`max_grad_norm` must be greater than 0, got {max_grad_norm}.")
    if mismatch_cap is not None and not 1.0 <= mismatch_cap < float("inf"):
        raise InputError(f"`mismatch_cap` must be finite and at least 1, got {mismatch_cap}.")
    if not 0.0 < temperature < float("inf"):
        raise InputError(f"`temperature` must be finite and greater than 0, got {temperature}.")


def check_controller(controller: AlphaController | None, surrogate: Surrogate, updates: int) -> None:
    """Refuse an alpha controller without an alpha to move, or without a ratio to learn from.

    Args:
        controller: None is fine.
        surrogate: What it moves.
        updates: Optimiser steps per rollout.

    Raises:
        InputError: If it could do nothing.
    """
    if controller is None:
        return
    if not isinstance(surrogate, SmoothedSurrogate):
        raise InputError(
            f"`alpha_controller` needs a surrogate with an alpha, such as PSPO, got {type(surrogate).__name__}."
        )
    if isinstance(controller, KLTarget) and updates == 1:
        raise InputError(
            "`alpha_controller` KLTarget needs more than one update per rollout: with one the ratio is always 1 and "
            "there is no divergence to hold."
        )


def check_objective(
    surrogate: Surrogate, ratio_level: str, kl_coef: float, kl_on_policy: bool, advantage: Advantage, refill_rounds: int
) -> None:
    """Refuse settings that contradict each other.

    Raises:
        InputError: Naming them.
    """
    check_level(ratio_level)
    if isinstance(surrogate, GMPO) and ratio_level != "token":
        raise InputError("`ratio_level` must be token with GMPO, which takes its own mean over the row, got sequence.")
    if isinstance(surrogate, TOPR) and surrogate.whole_row and ratio_level != "token":
        raise InputError(
            "`ratio_level` must be token with TOPR(whole_row=True), which sums over the row, got sequence."
        )
    if kl_on_policy and kl_coef == 0.0:
        raise InputError("`kl_on_policy` needs a `kl_coef` above 0, got 0.")
    if refill_rounds and isinstance(advantage, NoBaseline | SeparateAdvantage):
        raise InputError(
            f"`refill_rounds` must be 0 with {type(advantage).__name__}, got {refill_rounds}: there a group of equal "
            "total rewards has a gradient, and refilling would throw it away."
        )


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


def notes(
    updates: int, surrogate: Surrogate, plain: bool, optimizer: Optimizer, max_grad_norm: float | None
) -> Iterator[str]:
    """Yield what a user should know of these settings before training.

    Args:
        updates: Optimiser steps per rollout.
        surrogate: The objective.
        plain: True without a KL term, an entropy bonus and an alpha controller.
        optimizer: The optimiser.
        max_grad_norm: Gradient-norm bound.
    """
    if updates == 1:
        yield (
            "One update per rollout: the importance ratio is always 1, so the surrogate only scales the gradient. "
            "Raise `updates_per_rollout` or `minibatches_per_rollout` for it to matter."
        )
    name = type(optimizer).__name__
    if isinstance(surrogate, PSPO) and surrogate.alpha > 0.0 and plain and name.startswith(_SCALE_FREE):
        exception = " but for its epsilon" + ("" if max_grad_norm is None else " and steps where `max_grad_norm` binds")
        yield (
            f"A constant alpha only rescales PSPO's gradient, and {name} cancels a constant factor{exception}: compare "
            "with surrogate=Unclipped at the same learning rate."
        )
