"""Lightning's own callbacks in this loop: those it cannot honour are refused, the others act after rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_pspo.errors import InputError

_AVERAGES = "it copies the module, which holds a rollout engine and graders, and no rollout comes from its weights: {}"
_UNUSABLE: dict[type[Callback], str] = {
    WeightAveraging: _AVERAGES.format("remove it, and keep the best weights with RolloutCheckpoint(monitor=...)"),
    StochasticWeightAveraging: _AVERAGES.format("remove it, and lower the rate at the end with `model.lr_schedule`"),
    GradientAccumulationScheduler: "an update always accumulates over its whole mini-batch: set "
    "`model.minibatches_per_rollout` instead",
    LearningRateFinder: "it steps through batches, and here each is a rollout: set `model.optimizer.lr` instead",
    ModelPruning: "it prunes layers that it finds in the module, and the policy is none of them: remove it",
    BaseFinetuning: "it adds weights to an optimiser that holds those of the policy: train fewer of them with "
    "`model.policy.lora` instead",
    SpikeDetection: "the loss of a policy gradient is near 0 and its size says nothing: `model.max_grad_norm` bounds a "
    "step, and one that is not finite ends the run",
    BatchSizeFinder: "it repeats training steps, and here each is a rollout: set `data.prompts_per_rollout` instead",
}

_AT_THE_END = "check_on_train_epoch_end"
_ENDED_BY = {  # the settings by which EarlyStopping ends a run whatever came before
    EarlyStoppingReason.STOPPING_THRESHOLD.value: "stopping_threshold",
    EarlyStoppingReason.DIVERGENCE_THRESHOLD.value: "divergence_threshold",
    EarlyStoppingReason.NON_FINITE_METRIC.value: "check_finite",
}


def check_lightning_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks of Lightning that change training in ways that this loop cannot honour."""
    for callback in callbacks:
        settings = {_AT_THE_END: getattr(callback, f"_{_AT_THE_END}", None)}
        if (reason := unusable(type(callback), settings)) is not None:
            raise InputError(reason)


def unusable(kind: type, settings: Mapping[str, Any]) -> str | None:
    """Return why a class of callbacks cannot be used, or one of its settings; None if both can."""
    reason = next((reason for base, reason in _UNUSABLE.items() if issubclass(kind, base)), None)
    if reason is not None:
        return f"`trainer.callbacks` must not hold {kind.__name__}: {reason}."
    if issubclass(kind, EarlyStopping) and settings.get(_AT_THE_END):
        reason = "an epoch is the run, at whose end nothing is left to stop"
        return f"`{_AT_THE_END}` of {kind.__name__} must be null or false, got true: {reason}."
    return None


def leave_the_epochs_end(callbacks: Iterable[Callback]) -> None:
    """Let EarlyStopping not check at the end of the epoch, before its ``setup`` fills in what was not given."""
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
            callback._check_on_train_epoch_end = False


class ActAfterRollouts(Callback):
    """Lets EarlyStopping and ModelCheckpoint act after each validation, or after each rollout of a run without one.

    Lightning takes ``val_check_interval: 1`` (after every rollout) for 1.0 (at the end of the epoch, which is that of
    the run), and without validation they would look at their ``monitor`` at that end.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no callback wait for the end of the run that was not told to."""
        validates = any(trainer.num_val_batches)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping):
                callback._check_on_train_epoch_end = False  # true was refused, or is a default
            elif isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is None:
                acts = isinstance(trainer.val_check_interval, int) if validates else callback.monitor is not None
                callback._save_on_train_epoch_end = False if acts else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Let them look at what the rollout has logged; our own checkpoints are saved after this."""
        if any(trainer.num_val_batches):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
                callback.on_validation_end(trainer, pl_module)


def save_monitored(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Add to the state of each EarlyStopping the value of its metric."""
    for callback, state in _early_stops(checkpoint, trainer):
        if (value := trainer.callback_metrics.get(callback.monitor)) is not None:
            state["monitored"] = float(value)


def resume_early_stopping(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Let this run's `patience` of EarlyStopping count, in place of the stored one, which would undo a change.

    Raises:
        InputError: By its settings the run is over: each time it is resumed it would make another rollout.
    """
    for callback, state in _early_stops(checkpoint, trainer):
        state["patience"], waited, reason = callback.patience, state["wait_count"], state.get("stopping_reason")
        if reason == EarlyStoppingReason.PATIENCE_EXHAUSTED.value and waited >= callback.patience:
            raise InputError(
                f"`patience` of EarlyStopping must exceed the {waited} checks of {callback.monitor} without an "
                f"improvement, after which it has ended the run, got {callback.patience}: raise it."
            )
        asked, value = copy(callback), state.get("monitored")
        if reason not in _ENDED_BY or value is None or not asked._evaluate_stopping_criteria(torch.tensor(value))[0]:
            continue
        if name := _ENDED_BY.get(asked.stopping_reason.value):
            raise InputError(
                f"`{name}` of EarlyStopping must let the run go on at the {value:g} of {callback.monitor} that has "
                f"ended it, got {getattr(callback, name)}: change it, or resume from an earlier checkpoint."
            )


def _early_stops(checkpoint: Mapping[str, Any], trainer: Trainer) -> Iterator[tuple[EarlyStopping, dict[str, Any]]]:
    """Yield each EarlyStopping whose state a checkpoint holds, with the state."""
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.state_key in states:
            yield callback, states[callback.state_key]
