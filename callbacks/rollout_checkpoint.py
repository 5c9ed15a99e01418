"""Saves the run by rollouts, by the clock, and where it was best."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_pspo.checkpoints.integrity import is_whole
from lightning_pspo.checkpoints.save import save_atomically
from lightning_pspo.checkpoints.store import (
    ASIDE,
    checkpoint_folder,
    checkpoint_name,
    find_checkpoints,
    read_scores,
    rollout_of,
    write_scores,
)
from lightning_pspo.errors import InputError
from lightning_pspo.files import remove

from ._trainer import finished_rollouts, is_trial, root_folder


class RolloutCheckpoint(Checkpoint):
    """Saves after every n-th rollout, after n minutes, after the last rollout, and the best; ``rollout=000010.ckpt``.

    Every checkpoint holds the whole state right after a rollout, and a run resumed from any of them ends with the same
    bits. The newest ``keep_last`` stay, and the ``keep_best`` best, which ``best.json`` beside them lists: so
    ``--ckpt_path last`` and ``--ckpt_path best``. One goes only when as many newer ones were found whole.

    With a ``monitor`` every rollout that is validated is a candidate, with the values that the loggers get then; in a
    run without validation every rollout that is saved. Of equal scores the earlier one is the better, and nan is never
    among the best.

    A folder with whole checkpoints of later rollouts than the run has reached belongs to another run (or to another
    future of this one) and is refused: both would share the names. A damaged one is renamed to ``....damaged``.

    Args:
        every_n_rollouts: Rollouts between two checkpoints, at least 1; None for the clock alone.
        keep_last: Newest checkpoints to keep, at least 1.
        every_n_minutes: Save after the rollout at which so much time has passed since the last save, above 0; None for
            rollouts alone. Rank zero's clock counts.
        monitor: Logged metric that says how good a rollout is, such as ``val/gsm8k/accuracy``; None for none.
        mode: Whether the best is the largest or the smallest.
        keep_best: Best checkpoints to keep where there is a ``monitor``, at least 1.

    Raises:
        InputError: A number is out of range, or (when training starts) the folder holds a later rollout, or the metric
            cannot appear, or (as soon as others are there) it has not appeared.
    """

    def __init__(
        self,
        every_n_rollouts: int | None = 10,
        keep_last: int = 2,
        every_n_minutes: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        keep_best: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_rollouts", every_n_rollouts), ("keep_last", keep_last), ("keep_best", keep_best)):
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}.")
        if every_n_minutes is not None and not 0.0 < every_n_minutes < math.inf:
            raise InputError(f"`every_n_minutes` must be finite and greater than 0, got {every_n_minutes}.")
        if mode not in ("min", "max"):
            raise InputError(f"`mode` must be min or max, got {mode}.")
        self.every_n_rollouts = every_n_rollouts
        self.keep_last = keep_last
        self.every_n_minutes = every_n_minutes
        self.monitor = monitor
        self.mode = mode
        self.keep_best = keep_best
        self.seconds = 0.0
        self._saved_at = 0.0
        self._best: dict[int, float] = {}
        self._known_whole: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return the best rollouts so far, and the seconds that went into saving."""
        return {"monitor": self.monitor, "mode": self.mode, "best": dict(self._best), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the seconds, and the best, of which the folder says later which are still there."""
        self.seconds = state_dict["seconds"]
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self._best = dict(state_dict["best"])

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder of another run before time goes into the first measurement."""
        self._check(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a metric of the validation that this one did not have."""
        if self.monitor is not None and self.monitor.startswith("val/"):
            self._check_logged(trainer, self.monitor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder of another run; start the clock."""
        self._check(trainer)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time. Every rank takes part."""
        rollout = finished_rollouts(trainer)
        due = self.every_n_rollouts is not None and rollout % self.every_n_rollouts == 0
        due = due or rollout == trainer.num_training_batches
        if is_trial(trainer) or not (due or self._is_time(trainer)):
            return
        self._save(trainer)
        if self.monitor is not None and not _validates(trainer):
            self._consider(trainer)
        self._clean(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this was one of the best. Every rank takes part."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit" or is_trial(trainer):
            return
        self._consider(trainer)
        self._clean(trainer)

    def _folder(self, trainer: Trainer) -> Path:
        return checkpoint_folder(root_folder(trainer))

    def _is_time(self, trainer: Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        passed = time.monotonic() - self._saved_at >= 60.0 * self.every_n_minutes
        return bool(trainer.strategy.broadcast(passed))

    def _save(self, trainer: Trainer) -> None:
        rollout = finished_rollouts(trainer)
        begun = time.perf_counter()
        save_atomically(trainer, self._folder(trainer) / checkpoint_name(rollout))
        self.seconds += time.perf_counter() - begun
        self._saved_at = time.monotonic()
        self._known_whole.add(rollout)

    def _consider(self, trainer: Trainer) -> None:
        """Put this rollout among the best if it belongs there."""
        assert self.monitor is not None
        self._check_logged(trainer, self.monitor)
        rollout, score = finished_rollouts(trainer), float(trainer.callback_metrics[self.monitor])
        score = float(trainer.strategy.broadcast(score))  # the ranks must agree, whatever each of them logged
        best = {**self._best, **({} if math.isnan(score) else {rollout: score})}
        sign = -1.0 if self.mode == "max" else 1.0
        kept = sorted(best, key=lambda one: (sign * best[one], one))[: self.keep_best]
        self._best = {one: best[one] for one in kept}
        there = (self._folder(trainer) / checkpoint_name(rollout)).exists()
        if rollout in self._best and not trainer.strategy.broadcast(there):
            self._save(trainer)
        if trainer.is_global_zero:
            write_scores(self._folder(trainer), self.monitor, self.mode, self._best)

    def _clean(self, trainer: Trainer) -> None:
        """Delete what is neither new nor among the best; a damaged one does not count as new."""
        if not trainer.is_global_zero:
            return
        whole = 0
        for path in reversed(find_checkpoints(self._folder(trainer))):
            rollout = rollout_of(path)
            if whole >= self.keep_last:
                if rollout not in self._best:
                    remove(path)
            elif rollout in self._known_whole or is_whole(path):
                self._known_whole.add(rollout)
                whole += 1

    def _check(self, trainer: Trainer) -> None:
        if is_trial(trainer):
            return
        self._refuse_later_rollouts(trainer)
        trainer.strategy.barrier("pspo.checkpoints.check")  # all have looked before rank zero renames
        rollout, folder = finished_rollouts(trainer), self._folder(trainer)
        if trainer.is_global_zero:
            for path in find_checkpoints(folder):
                if rollout_of(path) > rollout:
                    aside = path.with_name(path.name + ASIDE)
                    remove(aside)  # of an earlier time; a folder cannot be replaced in one step
                    path.replace(aside)
                    rank_zero_warn(f"{path} is damaged; it is now {path.name}{ASIDE}, and its rollout is done again.")
        if self.monitor is None:
            return
        scores = self._best | read_scores(folder, self.monitor, self.mode)  # a crash may have cost the latest there
        there = {one for one in scores if one <= rollout and (folder / checkpoint_name(one)).exists()}
        self._best = {one: score for one, score in scores.items() if one in there}
        sources = list(getattr(trainer.datamodule, "val", {}))  # type: ignore[attr-defined]
        stage, _, name = self.monitor.partition("/")
        if stage == "val" and name.partition("/")[0] not in sources:
            raise InputError(
                f"`monitor` of RolloutCheckpoint must be a metric that is logged, got {self.monitor}; data.val has "
                f"{', '.join(sources) or 'no sources'}."
            )

    def _refuse_later_rollouts(self, trainer: Trainer) -> None:
        rollout = finished_rollouts(trainer)
        for path in reversed(find_checkpoints(self._folder(trainer))):
            if rollout_of(path) > rollout and is_whole(path):
                raise InputError(
                    f"The checkpoint folder must hold no later rollout than the {rollout} that this run has finished,"
                    f" got {path}; continue that run (--ckpt_path last), or choose another trainer.default_root_dir."
                )

    def _check_logged(self, trainer: Trainer, monitor: str) -> None:
        known = trainer.callback_metrics
        if monitor not in known:
            raise InputError(
                f"`monitor` of RolloutCheckpoint must be a metric that is logged, got {monitor}; there are "
                f"{', '.join(sorted(known)) or 'none'}."
            )


def _validates(trainer: Trainer) -> bool:
    return any(trainer.num_val_batches)
