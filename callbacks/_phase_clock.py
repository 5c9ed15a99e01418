"""Times the phases of an iteration and estimates the time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

NAMES = {"rollout": "rollout", "reward": "grading", "old_logprobs": "update", "update": "update"}
"""Phase that the training step times -> phase that is shown."""

SHOWN = ("rollout", "grading", "update")


class PhaseClock:
    """Averages the seconds of the last iterations, phase by phase.

    Args:
        window: Iterations to average over, at least 1. Completions grow or shrink during a run.
    """

    def __init__(self, window: int = 20) -> None:
        self._iterations: deque[dict[str, float]] = deque(maxlen=window)

    def add(self, seconds: Mapping[str, float], total: float) -> None:
        """Add an iteration: the seconds of its phases, and of all of it."""
        sums = dict.fromkeys(SHOWN, 0.0)
        for name, value in seconds.items():
            if name in NAMES:
                sums[NAMES[name]] += value
        self._iterations.append(sums | {"all": total})

    def means(self) -> dict[str, float]:
        """Return the mean seconds of each phase; empty before the first iteration."""
        return {name: self._mean(name) for name in SHOWN} if self._iterations else {}

    def left(self, iterations: float) -> dict[str, float]:
        """Return the expected seconds of so many iterations, by phase and in ``all``; empty before the first."""
        return {name: self._mean(name) * iterations for name in (*SHOWN, "all")} if self._iterations else {}

    def _mean(self, name: str) -> float:
        return sum(sums[name] for sums in self._iterations) / len(self._iterations)


def running(phases: Any, means: Mapping[str, float]) -> str:
    """Return the phase of ``Phases`` that runs, with the time that it still takes by its mean; empty between phases."""
    current, since = getattr(phases, "current", None), getattr(phases, "since", 0.0)  # read once: threads go on
    if current is None:
        return ""
    name = NAMES.get(current, current)
    spent = time.perf_counter() - since
    if name in means:
        return f"{name}: {clock(max(0.0, means[name] - spent))} left"
    return f"{name}: {clock(spent)}"


def clock(seconds: float) -> str:
    """Return h:mm:ss.

    >>> clock(3725.4)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))
