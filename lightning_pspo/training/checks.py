"""Refuse Trainer settings that the loop cannot honour, before any work starts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.plugins.precision import BitsandbytesPrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding import Sharding, sharding_of
from lightning_pspo.training.lightning_callbacks import check_lightning_callbacks

_NO_BITSANDBYTES = (
    "`trainer.plugins` must not hold BitsandbytesPrecision, which would quantise whatever is trained: for QLoRA set "
    "`model.policy.quantization` and `model.policy.lora`."
)

_LENGTH = "`data.num_rollouts` sets the length"
_ACCUMULATES = "an update accumulates over its whole mini-batch: see `model.minibatches_per_rollout` and `model.limits`"
_CLIPS = "`model.max_grad_norm` bounds the gradient's norm"
_FIXED: dict[str, tuple[float | None, str]] = {
    "max_epochs": (1, _LENGTH),
    "max_steps": (-1, _LENGTH),
    "min_epochs": (0, "an epoch is the run, which EarlyStopping and `trainer.max_time` could not end"),
    "gradient_clip_val": (None, _CLIPS),
    "gradient_clip_algorithm": (None, _CLIPS),
    "accumulate_grad_batches": (1, _ACCUMULATES),
    "check_val_every_n_epoch": (1, "an epoch is the run: `trainer.val_check_interval` counts rollouts"),
    "overfit_batches": (0, "give `data.train` a small `limit`, and `data.val` the same"),
}

_EPOCHS, _LOG_EVERY = 1000, 50  # what Lightning takes for `max_epochs` and `log_every_n_steps` that are not given
warnings.filterwarnings("ignore", message="`max_epochs` was not set")  # it is 1 then: see apply_loop_defaults

_LEAST = {"num_sanity_val_steps": -1, "log_every_n_steps": 1}

PRECISIONS = ("32-true", "bf16-mixed")
"""bfloat16 weights would lose small updates; float16 needs a loss scale that this loop does not keep."""

HALF = ("16", "16-mixed")
"""What Lightning turns into bf16-mixed on a CPU."""


def check_trainer(trainer: Trainer) -> Sharding:
    """Refuse a strategy or precision that the loop does not support; return how the weights lie under the strategy."""
    sharding = sharding_of(trainer.strategy)
    _check_launched(trainer)
    sharding.check()
    if isinstance(trainer.precision_plugin, BitsandbytesPrecision):
        raise InputError(_NO_BITSANDBYTES)
    if trainer.precision not in PRECISIONS:
        raise InputError(precision_rule(trainer.precision))
    if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
        raise InputError(
            "`trainer.plugins` must not hold AsyncCheckpointIO: to write a checkpoint while the run goes on, set "
            "`background: true` of RolloutCheckpoint."
        )
    return sharding


def precision_rule(precision: Any) -> str:
    """Return the message about a precision that the loop does not support."""
    return f"`trainer.precision` must be one of {', '.join(PRECISIONS)}, got {precision}."


def _check_launched(trainer: Trainer) -> None:
    """Refuse a number of ranks other than torchrun or SLURM has started; each rank could be a run of its own."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None and TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
    if environment is None:
        return
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment):
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
            if name not in os.environ and not (name == "NODE_RANK" and "GROUP_RANK" in os.environ):
                raise InputError(
                    f"`trainer.num_nodes` {trainer.num_nodes} needs the variable {name} on every node, and MASTER_ADDR "
                    "and MASTER_PORT the same on all: start them with scripts/launch/torchrun.sh, which sets all."
                )
    try:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        raise InputError(
            f"`trainer.devices` and `trainer.num_nodes` must be what {type(environment).__name__} has started: {error}"
        ) from error


def check_unsupported(settings: Any) -> None:
    """Refuse settings of ``trainer`` with which no Trainer can be built, or only one of another kind than asked for.

    Lightning would ask for packages that do not help, and on a CPU take bfloat16 for float16.
    """
    check_plugins(settings.plugins)
    if str(settings.precision) in HALF or str(settings.precision).startswith("transformer-engine"):
        raise InputError(precision_rule(settings.precision))
    if settings.barebones:
        raise InputError("`trainer.barebones` must be false: it takes away the callbacks and logs of a run.")
    strategy = settings.strategy
    name = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    if "deepspeed" in str(name).lower():
        raise InputError(
            f"`trainer.strategy` must not be {name}, which is not supported: shard with `--config strategy/fsdp`."
        )
    for setting, value in (("strategy", str(name)), ("accelerator", str(settings.accelerator))):
        if "xla" in value.lower() or value.lower() == "tpu":
            raise InputError(f"`trainer.{setting}` must not be {value}: this runs on CUDA and CPUs, not on TPUs.")


def check_plugins(plugins: Any) -> None:
    """Refuse Lightning's own quantisation in ``trainer.plugins``: on a CPU no Trainer could be built with it."""
    entries = plugins if isinstance(plugins, list) else [plugins]
    for entry in entries:
        name = entry if isinstance(entry, str) else getattr(entry, "class_path", "")
        if str(name).rpartition(".")[2] == BitsandbytesPrecision.__name__:
            raise InputError(_NO_BITSANDBYTES)


def apply_loop_defaults(trainer: Trainer) -> None:
    """Replace what Lightning takes for settings that were not given by what the loop needs.

    ``max_epochs`` 1000 becomes 1, since an epoch is the run; ``log_every_n_steps`` 50 becomes 1, since a batch is a
    rollout; evaluation runs without gradients, but not in ``inference_mode``, whose tensors no update could use. The
    command line has defaults of its own and marks its Trainers by ``defaults_are_ours``: there 50 was asked for.
    """
    for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        loop.inference_mode = False
    if trainer.state.fn != TrainerFn.FITTING or getattr(trainer, "defaults_are_ours", False):
        return
    if trainer.max_epochs == _EPOCHS:
        trainer.fit_loop.max_epochs = 1
    if trainer.log_every_n_steps == _LOG_EVERY:  # type: ignore[attr-defined]
        trainer.log_every_n_steps = 1  # type: ignore[attr-defined]


def check_fit(trainer: Trainer) -> None:
    """Refuse settings that would cut or repeat a run, that the loop cannot honour, or that forbid a backward pass."""
    names = (*_FIXED, *_LEAST, "val_check_interval", "limit_train_batches")
    values: dict[str, Any] = {name: getattr(trainer, name, None) for name in names}
    if (seconds := getattr(trainer, "_val_check_time_interval", None)) is not None:
        values["val_check_interval"] = timedelta(seconds=seconds)
    values["inference_mode"] = trainer.validate_loop.inference_mode
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        values["max_steps"] = -1  # its own
    if trainer.min_steps:
        values["min_epochs"] = None  # Lightning's, which makes it 1
    for _, message in refusals(values):
        raise InputError(message)
    check_lightning_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
    done: Any = trainer.fit_loop.epoch_progress.current
    if done.processed and trainer.ckpt_path is None:
        raise InputError("This Trainer has finished its run: make a new one, which goes on from the module's weights.")


def refusals(trainer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting of the Trainer that no run can have, with the reason; None stands for a default.

    >>> next(refusals({"max_epochs": 3}))
    ('max_epochs', '`trainer.max_epochs` must be 1 (`data.num_rollouts` sets the length), got 3.')
    """
    if trainer.get("inference_mode"):
        reason = "must be false: inference tensors cannot enter a backward pass."
        yield "inference_mode", f"`trainer.inference_mode` {reason}"
    for name, (neutral, mend) in _FIXED.items():
        value = trainer.get(name)
        if value != neutral and (value is not None or name == "max_epochs"):
            shown = "null" if neutral is None else f"{neutral:g}"
            yield name, f"`trainer.{name}` must be {shown} ({mend}), got {getattr(value, 'value', value)}."
    for name, minimum in _LEAST.items():
        if isinstance(value := trainer.get(name), int | float) and value < minimum:
            yield name, f"`trainer.{name}` must be at least {minimum}, got {value}."
    interval = trainer.get("val_check_interval")
    if isinstance(interval, str | Mapping | timedelta):
        rule = "must be a number of rollouts, or a share of them: a resumed run has no other clock"
        yield "val_check_interval", f"`trainer.val_check_interval` {rule}, got {interval}."
    for name in ("val_check_interval", "limit_train_batches"):
        if trainer.get(name) == 0:
            yield name, f"`trainer.{name}` must be greater than 0, got 0."


def check_time_left(trainer: Trainer) -> None:
    """Refuse to go on with a run whose time is up: Lightning would stop it again without a rollout or a word."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0.0:
            taken = callback.time_elapsed()
            before, limit = (timedelta(seconds=round(seconds)) for seconds in (taken, taken + left))
            raise InputError(
                f"`trainer.max_time` must exceed the {before} that the run took before, since a resumed run counts on, "
                f"got {limit}: raise it."
            )


def run_every_rollout_of_a_trial(trainer: Trainer) -> None:
    """Let ``fast_dev_run: n`` make n rollouts: Lightning would stop after n optimiser steps."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop.max_steps = -1


def keep_csv_rows(trainer: Trainer) -> None:
    """Let a CSVLogger begin another version where its own has the rows of an earlier session, which it would delete."""
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger) or logger._version is None or logger._experiment is not None:
            continue
        if (rows := Path(logger.log_dir) / "metrics.csv").is_file():
            later = (f"{logger._version}_version_{number}" for number in count(1))  # which a report sorts
            is_number = isinstance(logger._version, int)
            logger._version = None if is_number else next(n for n in later if not Path(logger.root_dir, n).exists())
            rank_zero_warn(f"{rows} has the rows of an earlier session: those of this one go to {logger.log_dir}.")
