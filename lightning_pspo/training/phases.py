"""The length of a run, and the time that its phases take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer


def training_loader(trainer: Trainer) -> Any:
    """Return a loader of the training prompts, to ask it how long it is.

    Made without ``setup_data``: called before the checkpoint's loops are restored, as Lightning's
    ``estimated_stepping_batches`` does, that would lose the loader's position.
    """
    return trainer.fit_loop._data_source.dataloader()


def planned_rollouts(trainer: Trainer) -> int:
    """Return the number of rollouts after which ``fit`` stops: ``limit_train_batches`` may cut a run short."""
    limit = trainer.limit_train_batches
    rollouts = len(training_loader(trainer))
    return min(limit, rollouts) if isinstance(limit, int) else int(limit * rollouts)


class Phases(dict[str, float]):
    """The seconds that each phase of an iteration took; ``listeners`` are called with the name of each that begins.

    >>> phases = Phases([print])
    >>> with phases.timed("rollout"):
    ...     pass
    rollout
    >>> list(phases)
    ['rollout']
    """

    def __init__(self, listeners: Sequence[Callable[[str], None]] = ()) -> None:
        super().__init__()
        self.listeners = list(listeners)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to ``phase``; a GPU's work counts in the phase that asked for it."""
        begun = time.perf_counter()
        for listener in self.listeners:
            listener(phase)
        yield
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - begun
