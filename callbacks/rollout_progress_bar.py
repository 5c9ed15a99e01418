"""Shows the progress of a run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from lightning_pspo.errors import InputError, check_at_least

from ._phase_clock import NAMES, SHOWN, PhaseClock, clock, running
from ._trainer import finished_rollouts

_SHOWN = {"reward": "train/reward", "accuracy": "train/accuracy", "loss": "train/loss"}


class PhaseColumn(ProgressColumn):
    """Shows which phase of the iteration runs and how long it still takes, as ``bar`` measures them."""

    max_refresh = 0.2

    def __init__(self, bar: RolloutProgressBar) -> None:
        super().__init__()
        self._bar = bar

    def render(self, task: Task) -> Text:
        """Return the phase, for the training bar only."""
        return Text(self._bar.phase() if task.id == self._bar.train_progress_bar_id else "", style="cyan")


class RolloutProgressBar(RichProgressBar):
    """Shows rollout k of n with reward, accuracy, loss and the time left, in all and for rollout, grading and update.

    The current phase follows the bar, with the time it still takes. In a file or a pipe, where a bar would leave
    control characters, it prints a plain line every few rollouts, and one for each phase if an iteration takes
    ``phase_lines_s`` or longer. Times are estimated from this process's last 20 rollouts, without validation. List it
    after `RewardLogger`, whose values it shows.

    Args:
        refresh_rate: Redraws of the bar per second.
        line_every_n_rollouts: Rollouts between two plain lines, at least 1.
        phase_lines_s: Seconds of an iteration from which each of its phases gets a plain line, at least 0.
    """

    def __init__(self, *, refresh_rate: int = 10, line_every_n_rollouts: int = 10, phase_lines_s: float = 60.0) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        check_at_least("line_every_n_rollouts", line_every_n_rollouts, 1)
        if not phase_lines_s >= 0.0:
            raise InputError(f"`phase_lines_s` must be at least 0, got {phase_lines_s}.")
        self.line_every_n_rollouts, self.phase_lines_s = line_every_n_rollouts, phase_lines_s
        self.below: RenderableType | None = None  # drawn under the bar
        self._plain: Console | None = None
        self._extended: Progress | None = None
        self._module: Any = None
        self._source = ""
        self._begun = 0.0
        self._clock = PhaseClock()
        self._left: dict[str, float] = {}

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
        self._module = pl_module
        listeners = getattr(getattr(pl_module, "phases", None), "listeners", None)
        if self._plain and listeners is not None and self._phase_line not in listeners:
            listeners.append(self._phase_line)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Replace Lightning's speed column by the phase; the metrics column has the time left."""
        return [*super().configure_columns(trainer)[:3], PhaseColumn(self)]

    def phase(self) -> str:
        """Return the phase that runs with the time it still takes; empty between phases."""
        return running(getattr(self._module, "phases", None), self._clock.means())

    def _init_progress(self, trainer: Trainer) -> None:
        """Draw ``below`` under the bar; Lightning makes a new bar whenever it has stopped one."""
        super()._init_progress(trainer)
        progress = self.progress
        if progress is None or progress is self._extended:
            return
        bars = progress.get_renderables

        def all_renderables() -> Iterator[RenderableType]:
            yield from bars()
            if self._left:
                yield Text(f"Left: {_by_phase(self._left)}", style="dim")
            if self.below is not None:
                yield self.below

        progress.get_renderables = all_renderables  # type: ignore[method-assign]
        self._extended = progress

    def _phase_line(self, name: str) -> None:
        """Print a plain line when a phase of a long iteration begins."""
        means = self._clock.means()
        if self._plain and name != "old_logprobs" and self._clock.left(1).get("all", -1.0) >= self.phase_lines_s:
            shown = NAMES.get(name, name)
            rollout = finished_rollouts(self.trainer)
            self._plain.print(f"rollout {rollout}: {shown} begins, about {clock(means.get(shown, 0.0))}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the values that follow the bar."""
        logged = trainer.callback_metrics
        shown: dict[str, Any] = {name: float(logged[key]) for name, key in _SHOWN.items() if key in logged}
        return shown | {"left": clock(self._left["all"]) if self._left else "-:--:--"}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the finished rollouts, which after a restart are not zero."""
        super().on_train_epoch_start(trainer, pl_module)
        self._update(self.train_progress_bar_id, finished_rollouts(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of the rollout."""
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        self._clock.add(outputs["seconds"], time.perf_counter() - self._begun)
        rollout, rollouts = finished_rollouts(trainer), trainer.num_training_batches
        self._left = {} if rollouts == float("inf") else self._clock.left(rollouts - rollout)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._plain and (rollout % self.line_every_n_rollouts == 0 or rollout in (1, rollouts)):
            metrics = self.get_metrics(trainer, pl_module)
            values = [f"{name} {value if name == 'left' else f'{value:.3f}'}" for name, value in metrics.items()]
            if self._left:
                values[-1] += f" ({_by_phase(self._left)})"
            self._plain.print(f"rollout {rollout}/{rollouts}", *values, sep="  ")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Name the bar after the batch's source; print a plain line when a measurement begins."""
        self._source = str(getattr(batch, "source", ""))
        if self._plain and batch_idx == 0:
            description = self.sanity_check_description if trainer.sanity_checking else self.validation_description
            self._plain.print(description)
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Rollout"


def _by_phase(left: dict[str, float]) -> str:
    return ", ".join(f"{name} {clock(left[name])}" for name in SHOWN)
