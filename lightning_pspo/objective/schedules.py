"""Schedules over a run: a factor for each update, as a function of the update's index and the run's length."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from lightning_pspo.errors import InputError


class Schedule(ABC):
    """A factor over the updates of a run. The module multiplies the learning rate by it."""

    @abstractmethod
    def __call__(self, update: int, total_updates: int) -> float:
        """Return the factor for ``update`` in [0, total_updates)."""


class Constant(Schedule):
    """The factor 1, after a linear warm-up.

    Args:
        warmup_updates: Updates over which the factor rises linearly to 1, at least 0.

    >>> [Constant(warmup_updates=2)(update, 10) for update in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """

    def __init__(self, *, warmup_updates: int = 0) -> None:
        if warmup_updates < 0:
            raise InputError(f"`warmup_updates` must be at least 0, got {warmup_updates}.")
        self.warmup_updates = warmup_updates

    def __call__(self, update: int, total_updates: int) -> float:
        """Return the factor."""
        if update < self.warmup_updates:
            return (update + 1) / self.warmup_updates
        return self.decay(min(1.0, (update - self.warmup_updates) / max(1, total_updates - self.warmup_updates)))

    def decay(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1] of the part after the warm-up."""
        return 1.0


class Linear(Constant):
    """Linear warm-up, then a linear fall to 0 after the last update.

    >>> [Linear()(update, 4) for update in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """

    def decay(self, progress: float) -> float:
        """Return 1 - progress."""
        return 1.0 - progress


class Cosine(Constant):
    """Linear warm-up, then half a cosine from 1 to 0.

    >>> [round(Cosine()(update, 4), 3) for update in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """

    def decay(self, progress: float) -> float:
        """Return (1 + cos(pi progress)) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))
