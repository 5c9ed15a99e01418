"""Shows how far a run is: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from callbacks._shared import finished_rollouts
from lightning_pspo.types import InputError

_SHOWN = {"reward": "train/reward", "accuracy": "train/accuracy", "loss": "train/loss"}


class RolloutProgressBar(RichProgressBar):
    """Shows rollout k of n with reward, accuracy, loss and the time left.

    In a file or a pipe, where a bar would leave control characters, it prints one plain line every few rollouts. Name
    it after `RewardLogger`, whose values it shows.

    Args:
        refresh_rate: Redraws of the bar per second.
        line_every_n_rollouts: Rollouts between two plain lines, at least 1.

    Raises:
        InputError: ``line_every_n_rollouts`` is below 1.
    """

    def __init__(self, refresh_rate: int = 10, line_every_n_rollouts: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        if line_every_n_rollouts < 1:
            raise InputError(f"`line_every_n_rollouts` must be at least 1, got {line_every_n_rollouts}.")
        self.line_every_n_rollouts = line_every_n_rollouts
        self._plain: Console | None = None
        self._source = ""
        self._begun = 0.0
        self._spent = 0.0
        self._timed = 0

    @property
    def sanity_check_description(self) -> str:
        """Name of the first measurement's bar."""
        return f"Before {self._source}"

    @property
    def validation_description(self) -> str:
        """Name of a validation bar."""
        return f"Validate {self._source}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose between the bar and plain lines."""
        super().setup(trainer, pl_module, stage)
        console = Console(soft_wrap=True, highlight=False, markup=False)
        drawable = (console.is_terminal and not console.is_dumb_terminal) or console.is_jupyter
        if self.is_enabled and not drawable:
            self._plain = console
            self.disable()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Leave out Lightning's speed column; the metrics column has the time left."""
        return super().configure_columns(trainer)[:3]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        logged = trainer.callback_metrics
        shown: dict[str, Any] = {name: float(logged[key]) for name, key in _SHOWN.items() if key in logged}
        return shown | {"left": self._time_left(trainer)}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar where the run stands, which after a restart is not zero."""
        super().on_train_epoch_start(trainer, pl_module)
        self._update(self.train_progress_bar_id, finished_rollouts(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of the rollout."""
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        self._spent += time.perf_counter() - self._begun
        self._timed += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        rollout = finished_rollouts(trainer)
        if self._plain and (rollout % self.line_every_n_rollouts == 0 or rollout in (1, trainer.num_training_batches)):
            metrics = self.get_metrics(trainer, pl_module)
            values = (f"{name} {value if name == 'left' else f'{value:.3f}'}" for name, value in metrics.items())
            self._plain.print(f"rollout {rollout}/{trainer.num_training_batches}", *values, sep="  ")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Name the bar after the batch's source; a plain line says which measurement begins."""
        self._source = str(getattr(batch, "source", ""))
        if self._plain and batch_idx == 0:
            description = self.sanity_check_description if trainer.sanity_checking else self.validation_description
            self._plain.print(description)
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Rollout"

    def _time_left(self, trainer: Trainer) -> str:
        """Return h:mm:ss from this process's mean seconds per rollout, validation left out."""
        if not self._timed or trainer.num_training_batches == float("inf"):
            return "-:--:--"
        remaining = trainer.num_training_batches - finished_rollouts(trainer)
        return str(timedelta(seconds=round(remaining * self._spent / self._timed)))
