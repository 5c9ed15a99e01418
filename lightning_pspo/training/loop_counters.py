"""Where in a run a checkpoint lies: always right after a rollout, whatever the trainer was doing when it was saved."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

_ROLLOUTS = "epoch_loop.batch_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def put_after_rollout(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Write the loops' counters as they are right after the last rollout.

    Lightning resumes in different places of its loop, depending on the hook in which a checkpoint was saved. Here one
    that was saved during a validation, or after it, resumes like one of before it; what differs is only whether the
    validation is still to be done.
    """
    loops = checkpoint["loops"]["fit_loop"]
    rollouts, validation = loops[_ROLLOUTS], loops[_VALIDATION]
    if loops["epoch_progress"]["current"]["processed"] or not rollouts["current"]["ready"]:
        return  # the run is over, or has not begun
    before = rollouts["current"]["processed"] - 1  # Lightning counts one too many after an interrupted validation
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = before
    done = trainer.validating and validation["is_last_batch"]
    done = done and validation["current"]["completed"] == validation["current"]["ready"]
    for counters in (rollouts["total"], rollouts["current"]):
        counters["completed"] = counters["processed"] - 1  # as in on_train_batch_end
    begun = 0 if done else 1  # a batch that was begun and not processed: Lightning takes the validation up again
    for counters in (validation["total"], validation["current"]):
        counters.update(ready=begun, started=begun, processed=0, completed=0)


def resume_after_rollout(checkpoint: dict[str, Any], planned: int) -> None:
    """Let a run of ``planned`` rollouts go on from the checkpoint; one that had ended early, at its own limit, too."""
    rollouts = checkpoint["loops"]["fit_loop"][_ROLLOUTS]
    rollouts["is_last_batch"] = rollouts["current"]["ready"] >= planned


def make_up_for_validation(trainer: Trainer) -> None:
    """Run the validation after the last rollout if an interruption cost it; Lightning would do nothing more."""
    loop = trainer.fit_loop.epoch_loop
    if loop.val_loop.restarted_mid_evaluation and loop.total_batch_idx + 1 == trainer.num_training_batches:
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
