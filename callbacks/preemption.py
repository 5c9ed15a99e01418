"""Saves and stops the run on SIGTERM and SIGUSR1."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_pspo.checkpoints.save import finish_saving, save_atomically
from lightning_pspo.checkpoints.store import checkpoint_folder, checkpoint_name

from ._trainer import finished_rollouts, is_trial, log_rollout, root_folder

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption(Checkpoint):
    """Saves at the next safe point after SIGTERM or SIGUSR1 and ends the run with status 128 + signal (143, 138).

    A safe point is the end of a rollout, or of a validation batch, where the state is still that of the rollout before
    it; the resumed run then repeats the whole validation. The ranks agree there, so it is enough that one of them got
    the signal. Nothing is interrupted before: a second signal changes nothing. Before the first rollout there is
    nothing to save and the run just ends.

    During ``fit`` this replaces Lightning's own handlers, which would broadcast from inside a handler and end with
    status 0, and its automatic requeueing under SLURM: let the job script requeue (docs/checkpoints.md). Signals before
    training starts, and in other commands than ``fit``, keep their usual effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self._received: signal.Signals | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Only note signals from now on."""
        if stage != "fit":
            return
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("Preemption does nothing: only the main thread receives signals, and this is another one.")
            return
        untyped: Any = trainer
        untyped._signal_connector = _SignalNotes(trainer, self._note)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        """Stop after this rollout if asked to. Every rank takes part."""
        self._stop_if_asked(trainer, is_unlogged=True)

    def on_train_start(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        """Stop after set-up if asked to. Every rank takes part."""
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        """Stop during a validation if asked to. Every rank takes part: all have equally many batches."""
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)

    def _stop_if_asked(self, trainer: Trainer, *, is_unlogged: bool = False) -> None:
        agree = trainer.strategy.reduce_boolean_decision
        if not agree(self._received is not None, all=False):
            return
        received = next(number for number in SIGNALS if agree(self._received is number, all=False))
        if is_unlogged:
            log_rollout(trainer)
        rollout = finished_rollouts(trainer)
        result = "Nothing was saved: there was no rollout yet"
        if rollout and not is_trial(trainer):
            finish_saving(trainer)
            path = checkpoint_folder(root_folder(trainer)) / checkpoint_name(rollout)
            if not trainer.strategy.broadcast(path.exists()):
                save_atomically(trainer, path)
            result = f"Saved {path}"
        trainer.strategy.barrier("pspo.preemption")
        rank_zero_info(
            f"Stopped by {received.name} after rollout {rollout}. {result}. To resume, run the same command with "
            "--ckpt_path last."
        )
        raise SystemExit(128 + received)


class _SignalNotes(_SignalConnector):
    """Calls a function for each of `SIGNALS` and does nothing else."""

    def __init__(self, trainer: Trainer, note: Callable[[int, FrameType | None], None]) -> None:
        super().__init__(trainer)
        self._note = note

    def register_signal_handlers(self) -> None:
        self._received = False
        self._original_handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            self._register_signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        self._note(number, frame)

    def teardown(self) -> None:
        """Restore the handlers; after a signal ignore further ones, which would change the status of the process."""
        if self._received:
            self._original_handlers = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        super().teardown()
