"""Saves the run by rollouts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks._shared import finished_rollouts, is_trial, root_folder
from lightning_pspo.checkpointing import (
    checkpoint_folder,
    checkpoint_name,
    find_checkpoints,
    remove,
    rollout_of,
    save_atomically,
)
from lightning_pspo.types import InputError


class RolloutCheckpoint(Checkpoint):
    """Saves after every n-th rollout and after the last one, into ``rollout=000010.ckpt``.

    Never at the end of the epoch: a run resumed from there has no steps left and says nothing. A checkpoint is complete
    before an older one goes. A folder with checkpoints of later rollouts than the run has reached belongs to another
    run (or to another future of this one) and is refused: both would share the names and the retention.

    Args:
        every_n_rollouts: Rollouts between two checkpoints, at least 1.
        keep_last: Newest checkpoints to keep, at least 1.

    Raises:
        InputError: A number is below 1, or (when training starts) the folder holds a later rollout.
    """

    def __init__(self, every_n_rollouts: int = 10, keep_last: int = 2) -> None:
        super().__init__()
        for name, value in (("every_n_rollouts", every_n_rollouts), ("keep_last", keep_last)):
            if value < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}.")
        self.every_n_rollouts = every_n_rollouts
        self.keep_last = keep_last

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder of another run before time goes into the first measurement."""
        self._refuse_later_rollouts(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder of another run."""
        self._refuse_later_rollouts(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time. Every rank takes part."""
        rollout = finished_rollouts(trainer)
        due = rollout % self.every_n_rollouts == 0 or rollout == trainer.num_training_batches
        if not due or is_trial(trainer):
            return
        folder = checkpoint_folder(root_folder(trainer))
        save_atomically(trainer, folder / checkpoint_name(rollout))
        if trainer.is_global_zero:
            for old in find_checkpoints(folder)[: -self.keep_last]:
                remove(old)

    def _refuse_later_rollouts(self, trainer: Trainer) -> None:
        found = find_checkpoints(checkpoint_folder(root_folder(trainer)))
        rollout = finished_rollouts(trainer)
        if found and not is_trial(trainer) and rollout_of(found[-1]) > rollout:
            raise InputError(
                f"The checkpoint folder must hold no later rollout than the {rollout} that this run has finished, got"
                f" {found[-1]}; continue that run (--ckpt_path last), or choose another trainer.default_root_dir."
            )
