"""The loop counters of a checkpoint: always those right after a rollout, whatever the trainer did when it was saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from lightning_pspo.errors import InputError

_ROLLOUTS = "epoch_loop.batch_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def finished_rollouts(trainer: Trainer) -> int:
    """Return how many rollouts the run has finished, over restarts; while one is collected and used, its number."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def put_after_rollout(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Write the loops' counters as they are right after the last rollout.

    Where in its loop Lightning resumes depends on the hook in which the checkpoint was saved. With these counters a
    checkpoint saved during or after a validation resumes like one saved before it, except that a finished validation
    is not repeated.
    """
    loops = checkpoint["loops"]["fit_loop"]
    rollouts, validation = loops[_ROLLOUTS], loops[_VALIDATION]
    if loops["epoch_progress"]["current"]["processed"] or not rollouts["current"]["ready"]:
        return  # the run is over, or has not begun
    before = rollouts["current"]["processed"] - 1  # off by one after an interrupted validation
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = before
    done = trainer.validating and validation["is_last_batch"]
    done = done and validation["current"]["completed"] == validation["current"]["ready"]
    for counters in (rollouts["total"], rollouts["current"]):
        counters["completed"] = max(0, counters["processed"] - 1)  # as in on_train_batch_end
    begun = 0 if done else 1  # a batch that was begun and not processed: Lightning repeats the validation
    for counters in (validation["total"], validation["current"]):
        counters.update(ready=begun, started=begun, processed=0, completed=0)


def resume_after_rollout(checkpoint: dict[str, Any], planned: int) -> None:
    """Let a run of ``planned`` rollouts continue from the checkpoint, also of a run that ended at a lower limit."""
    for name, count in _counts(checkpoint.get("loops", {})):
        if type(count) is not int or count < 0:
            raise InputError(f"`ckpt_path` must count from 0 on, got {name}={count!r:.40} in its `loops`.")
    try:
        rollouts = checkpoint["loops"]["fit_loop"][_ROLLOUTS]
        begun = rollouts["current"]["ready"]
        rollouts["is_last_batch"] = begun >= planned
        is_within = begun > rollouts["current"].get("processed", begun)
    except (KeyError, TypeError):
        raise InputError(
            "`ckpt_path` must say after which rollout it was saved to go on with a run, got one without `loops`."
        ) from None
    if is_within:  # its weights and its prompts are of different rollouts
        raise InputError(
            f"`ckpt_path` must be saved between rollouts, got one saved by a callback within rollout {begun}: save in "
            "`on_train_batch_end`, or use one of RolloutCheckpoint."
        )


def _counts(loops: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a checkpoint's loops have counted."""
    for name, value in loops.items():
        if isinstance(value, dict):
            yield from _counts(value)
        elif name in ("ready", "started", "processed", "completed"):
            yield name, value


def run_missed_validation(trainer: Trainer) -> None:
    """Run the validation after the last rollout if an interruption prevented it."""
    interrupted = trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation
    if interrupted and finished_rollouts(trainer) == trainer.num_training_batches:
        validate_now(trainer)


def validate_now(trainer: Trainer) -> None:
    """Make the validation after the last rollout; Lightning does nothing more in a run that is resumed there."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
