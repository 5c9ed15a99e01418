"""Saves the run by rollouts, by the clock, and where it was best."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_pspo.checkpoints.integrity import is_whole
from lightning_pspo.checkpoints.save import finish_saving, is_saving, save_atomically
from lightning_pspo.checkpoints.store import (
    checkpoint_folder,
    checkpoint_name,
    find_checkpoints,
    find_damaged,
    read_scores,
    rollout_of,
    set_aside,
    write_scores,
)
from lightning_pspo.errors import InputError, check_at_least, check_positive
from lightning_pspo.files import remove

from ._trainer import finished_rollouts, is_trial, log_rollout, root_folder
from .combinations import check_logged


class RolloutCheckpoint(Checkpoint):
    """Saves after every n-th rollout, after n minutes, after the last rollout, and the best: ``rollout=000010.ckpt``.

    Every checkpoint holds the whole state right after a rollout, and a run resumed from any of them ends with the same
    bits. The newest ``keep_last`` are kept, and the ``keep_best`` best, listed in ``best.json`` beside them; hence
    ``--ckpt_path last`` and ``--ckpt_path best``. A checkpoint is deleted only when that many newer ones are undamaged.

    With a ``monitor`` every validated rollout is a candidate, with the values that the loggers get then; in a run
    without validation every saved rollout. Of equal scores the earlier one is better, and nan is never best.

    A folder with undamaged checkpoints of later rollouts than the run has reached belongs to another run (or to another
    future of this one) and is refused: both would use the same names. A damaged one is renamed to ``....damaged``.

    Args:
        every_n_rollouts: Rollouts between two checkpoints, at least 1; None for the clock alone.
        keep_last: Number of newest checkpoints to keep, at least 1.
        every_n_minutes: Save after the rollout at which so much time has passed since the last save, above 0; None for
            rollouts alone. Rank zero's clock counts.
        monitor: Logged metric that scores a rollout, such as ``val/gsm8k/accuracy``; None for none.
        mode: Whether the best score is the largest or the smallest.
        keep_best: Number of best checkpoints to keep if there is a ``monitor``, at least 1.
        background: Copy the state into the host's memory and write it while the run goes on. The next save and the end
            of the run wait for it; an error ends the run after the next rollout. Of a folder of sharded ranks only the
            checksum is made then. None for True on a GPU; on a CPU writing takes the cores from the run.

    Raises:
        InputError: A number is out of range; or (when training starts) the folder has a later rollout; or (after the
            first validation or rollout) the metric was not logged.
    """

    def __init__(
        self,
        *,
        every_n_rollouts: int | None = 10,
        keep_last: int = 2,
        every_n_minutes: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        keep_best: int = 1,
        background: bool | None = None,
    ) -> None:
        super().__init__()
        check_at_least("every_n_rollouts", every_n_rollouts, 1)
        check_at_least("keep_last", keep_last, 1)
        check_at_least("keep_best", keep_best, 1)
        if every_n_minutes is not None:
            check_positive("every_n_minutes", every_n_minutes)
        if mode not in ("min", "max"):
            raise InputError(f"`mode` must be min or max, got {mode}.")
        self.every_n_rollouts, self.every_n_minutes = every_n_rollouts, every_n_minutes
        self.keep_last, self.keep_best = keep_last, keep_best
        self.monitor, self.mode = monitor, mode
        self.background = background
        self.seconds = 0.0
        self._saved_at = 0.0
        self._best: dict[int, float] = {}
        self._undamaged: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return the best rollouts so far, and the seconds spent on saving."""
        return {"monitor": self.monitor, "mode": self.mode, "best": dict(self._best), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds and the best rollouts; which of these still exist, the folder shows later."""
        self.seconds = state_dict["seconds"]
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self._best = dict(state_dict["best"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the folder of another run, before time goes into the first measurement; start the clock."""
        self._check(trainer)
        self._saved_at = time.monotonic()

    on_sanity_check_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Save when it is time. Every rank takes part."""
        if is_trial(trainer):
            return
        rollout = finished_rollouts(trainer)
        due = self.every_n_rollouts is not None and rollout % self.every_n_rollouts == 0
        due = due or rollout == trainer.num_training_batches or trainer.should_stop
        if not due and self.every_n_minutes is not None:
            passed = time.monotonic() - self._saved_at >= 60.0 * self.every_n_minutes
            due = bool(trainer.strategy.broadcast(passed))
        if due:
            log_rollout(trainer)
            self._save(trainer)
            if self.monitor is not None and not any(trainer.num_val_batches):
                self._update_best(trainer, self.monitor)
        self._clean(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this rollout is one of the best, or the last because of it. Every rank takes part."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or is_trial(trainer):
            return
        if trainer.should_stop:
            self._save_missing(trainer)
        if self.monitor is not None:
            self._update_best(trainer, self.monitor)
        self._clean(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last checkpoint."""
        if not is_trial(trainer):
            finish_saving(trainer)
            self._clean(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a checkpoint that is being written be completed; a failure of its own would hide what went wrong."""
        with contextlib.suppress(Exception):
            finish_saving(trainer)

    def _folder(self, trainer: Trainer) -> Path:
        return checkpoint_folder(root_folder(trainer))

    def _save(self, trainer: Trainer) -> None:
        rollout, start = finished_rollouts(trainer), time.perf_counter()
        background = trainer.strategy.root_device.type != "cpu" if self.background is None else self.background
        save_atomically(trainer, self._folder(trainer) / checkpoint_name(rollout), background=background)
        self.seconds += time.perf_counter() - start
        self._saved_at = time.monotonic()
        self._undamaged.add(rollout)

    def _save_missing(self, trainer: Trainer) -> None:
        finish_saving(trainer)
        path = self._folder(trainer) / checkpoint_name(finished_rollouts(trainer))
        if not trainer.strategy.broadcast(path.exists()):
            self._save(trainer)

    def _update_best(self, trainer: Trainer, monitor: str) -> None:
        """Add this rollout to the best if it is one of them, and save it then."""
        check_logged(self, trainer.callback_metrics)
        rollout, score = finished_rollouts(trainer), float(trainer.callback_metrics[monitor])
        score = float(trainer.strategy.broadcast(score))  # the ranks must agree, whatever each of them logged
        scores = self._best if math.isnan(score) else {**self._best, rollout: score}
        sign = -1.0 if self.mode == "max" else 1.0
        ranked = sorted(scores, key=lambda candidate: (sign * scores[candidate], candidate))
        self._best = {candidate: scores[candidate] for candidate in ranked[: self.keep_best]}
        if rollout in self._best:
            self._save_missing(trainer)
        if trainer.is_global_zero:
            write_scores(self._folder(trainer), monitor, self.mode, self._best)

    def _clean(self, trainer: Trainer) -> None:
        """Delete checkpoints that are neither new nor best, and damaged ones that are older than all that are kept.

        Nothing is deleted while a checkpoint is being written, which may be lost.
        """
        if not trainer.is_global_zero or is_saving(trainer):
            return
        finish_saving(trainer)
        folder = self._folder(trainer)
        newest: list[int] = []
        for path in reversed(find_checkpoints(folder)):
            rollout = rollout_of(path)
            if len(newest) >= self.keep_last:
                if rollout not in self._best:
                    remove(path)
            elif rollout in self._undamaged or is_whole(path):
                self._undamaged.add(rollout)
                newest.append(rollout)
        if len(newest) >= self.keep_last:
            for path in find_damaged(folder, before=newest[-1]):
                remove(path)

    def _check(self, trainer: Trainer) -> None:
        """Refuse the folder of another run and set its damaged checkpoints aside; find the best that still exist."""
        if is_trial(trainer):
            return
        rollout, folder = finished_rollouts(trainer), self._folder(trainer)
        later = [path for path in find_checkpoints(folder) if rollout_of(path) > rollout]
        whole = next(filter(is_whole, reversed(later)), None) if trainer.is_global_zero else None  # reads every byte
        if (path := trainer.strategy.broadcast(whole)) is not None:
            raise InputError(
                f"The checkpoint folder must hold no later rollout than the {rollout} that this run has finished,"
                f" got {path}; continue that run (--ckpt_path last), or choose another trainer.default_root_dir."
            )
        if trainer.is_global_zero:
            for path in later:
                rank_zero_warn(f"{path} is damaged; it is now {set_aside(path).name}, and its rollout is done again.")
        if self.monitor is None:
            return
        scores = self._best | read_scores(folder, self.monitor, self.mode)  # a crash may have cost the latest there
        self._best = {
            candidate: score
            for candidate, score in scores.items()
            if candidate <= rollout and (folder / checkpoint_name(candidate)).exists()
        }
