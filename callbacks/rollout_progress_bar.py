"""Shows the progress of a run on one line: see ``lightning_pspo.progress``."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_pspo.progress import WORK, begin, hidden_bars, start, stop

from ._trainer import finished_rollouts

_FIGURES = {"reward": "train/reward", "accuracy": "train/accuracy", "loss": "train/loss"}
_WINDOW = 20  # rollouts that the time left is estimated from: completions grow or shrink during a run


class RolloutProgressBar(ProgressBar):
    """Shows on one line the rollout or batch, the phase with what is done of it, and the time left.

    ``rollout 12/30  sampling 5,120 tokens  0:05  reward 0.612  accuracy 0.604  1:25 left``: in a terminal the line is
    redrawn four times a second, and is never wider than the terminal. In a file or a pipe it is written at most every
    30 seconds, and every 60 if nothing else has begun. The time left is that of the last 20 rollouts of this process,
    without validation, or of the batches of an evaluation so far. The command line adds it to runs that list none:
    ``--trainer.enable_progress_bar=false --callbacks.RolloutProgressBar=null`` shows no progress.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._hidden = contextlib.ExitStack()  # bars of transformers, which would break the line
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._begun = 0.0  # of the rollout or the evaluation

    def disable(self) -> None:
        """Show nothing: on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to show."""
        super().setup(trainer, pl_module, stage)
        if self._enabled:
            start(stage)
            begin("loading the model")
            self._hidden.enter_context(hidden_bars("transformers"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop."""
        self._hidden.close()
        if self._enabled:
            stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Make room for what is said about the failure."""
        self.teardown(trainer, pl_module, "")

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show which rollout begins."""
        self._begun = time.monotonic()
        number, rollouts = finished_rollouts(trainer), trainer.num_training_batches  # here the number is this one's
        WORK.stage = f"rollout {number}" + ("" if rollouts == float("inf") else f"/{rollouts}")
        WORK.left_s = lambda now: self._left_s(rollouts - number, now)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the rollout's time, and its figures for the line."""
        self._seconds.append(time.monotonic() - self._begun)
        begin("saving")
        logged = trainer.callback_metrics
        WORK.figures = tuple(f"{name} {float(logged[key]):.3f}" for name, key in _FIGURES.items() if key in logged)

    def _left_s(self, rollouts: float, now: float) -> float | None:
        """Return the seconds of this rollout and so many more; None before the first has ended, or if it never ends."""
        if not self._seconds or rollouts == float("inf"):
            return None
        mean = sum(self._seconds) / len(self._seconds)
        return rollouts * mean + max(0.0, mean - (now - self._begun))

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an evaluation."""
        self._begun = time.monotonic()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Show which batch of which source begins; before the first rollout, "before" stands for "validate"."""
        verb = "before" if trainer.sanity_checking else getattr(trainer.state.stage, "value", "validate")
        name = "sanity_val" if trainer.sanity_checking else {"validate": "val"}.get(verb, verb)
        sizes = getattr(trainer, f"num_{name}_batches")  # of each source
        done = sum(sizes[:dataloader_idx]) + batch_idx
        WORK.stage = f"{verb} {getattr(batch, 'source', '')} {batch_idx + 1}/{sizes[dataloader_idx]}"
        elapsed = time.monotonic() - self._begun
        WORK.left_s = lambda now: elapsed / done * sum(sizes) - (now - self._begun) if done else None

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the evaluation."""
        begin("measuring")
        WORK.left_s = lambda now: None
