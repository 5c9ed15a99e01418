"""Keeps the verdict of every completion of the validations during training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pspo.files import as_lines, write_atomically

from ._completion_files import sample_rows
from ._trainer import finished_rollouts, is_trial, root_folder, validate_now

_FIELDS = ("source", "temperature", "id", "question", "answer", "sample", "verdict", "truncated", "length_tokens")


class ValidationVerdicts(Callback):
    """Writes one JSON line per sample of every validation in ``fit`` to ``validations/rollout=<n>.jsonl``.

    ``lightning-pspo compare`` reads these files, so that runs can be compared at any validation. That
    before training is rollout 0, with ``trainer.num_sanity_val_steps: -1``. They hold verdicts and lengths, no
    completions. A resumed run writes the files that it repeats again, and the last one if an interruption prevented it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[list[int], dict[str, Any]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the measurement after the last rollout if an interruption prevented it."""
        missing = not self._path(trainer).exists()
        if finished_rollouts(trainer) == trainer.num_training_batches and trainer.strategy.broadcast(missing):
            validate_now(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of an interrupted validation."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the verdicts of one batch."""
        if trainer.state.fn == "fit":
            self._rows += [
                ([dataloader_idx, *key], {name: row[name] for name in _FIELDS}) for key, row in sample_rows(outputs)
            ]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all ranks, on rank zero; not those of a sanity check of some batches."""
        partial = trainer.sanity_checking and trainer.num_sanity_val_steps != float("inf")
        if trainer.state.fn != "fit" or is_trial(trainer) or partial:
            return
        rows = self._rows
        if trainer.world_size > 1:
            by_rank: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(by_rank, rows)
            rows = [row for part in by_rank for row in part]
        if trainer.is_global_zero:
            rows.sort(key=lambda row: row[0])
            write_atomically(self._path(trainer), as_lines([row for _, row in rows]))

    def _path(self, trainer: Trainer) -> Any:
        return root_folder(trainer) / "validations" / f"rollout={finished_rollouts(trainer):06d}.jsonl"
