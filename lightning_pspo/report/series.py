"""An arm's curve: the mean of its runs, a band around it, and no more points than a chart can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.report.arms import Arm

BUCKETS = 200
"""Most points of a line; a longer curve is averaged in as many stretches of equal length."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn, of K points."""

    x: _Array  # rollouts, increasing
    mean: _Array  # over runs, and over the rollouts of a bucket
    low: _Array  # the lowest of several runs, or the lowest value in a bucket of one run
    high: _Array  # likewise
    runs: int  # that it is the mean of
    bucket: int  # points of a run in the fullest bucket, 1 where every point is drawn

    @property
    def has_band(self) -> bool:
        """Whether the band is wider than the line."""
        return bool((self.high > self.low).any())

    def points(self) -> list[tuple[float, float]]:
        """Return position and mean of each point."""
        return list(zip(self.x.tolist(), self.mean.tolist(), strict=True))


def arm_line(arm: Arm, key: str) -> Line | None:
    """Return an arm's curve of a log key, averaged over the runs that have come so far; None if no run has it."""
    curves = [run.curves[key] for run in arm.runs if key in run.curves]
    return combine(curves) if curves else None


def combine(curves: Sequence[tuple[_Array, _Array]]) -> Line:
    """Return the mean and the band of several runs' curves."""
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    if len(grid) <= BUCKETS:
        edges = np.append(grid, np.inf)
        centres = grid
    else:
        edges = np.linspace(grid[0], grid[-1], BUCKETS + 1)
        edges[-1] = np.inf
        centres = np.append((edges[:-2] + edges[1:-1]) / 2, (edges[-2] + grid[-1]) / 2)
    buckets = [_buckets(x, values, edges) for x, values in curves]
    counts, means, lows, highs = (np.stack(parts) for parts in zip(*buckets, strict=True))  # each (R, K)
    if len(curves) > 1:
        lows = highs = means
    present = counts > 0
    used = present.any(axis=0)  # (K,)
    mean = np.where(present, means, 0.0).sum(axis=0)[used] / present.sum(axis=0)[used]
    low = np.where(present, lows, np.inf).min(axis=0)[used]
    high = np.where(present, highs, -np.inf).max(axis=0)[used]
    return Line(centres[used], mean, low, high, len(curves), int(counts.max()))


def _buckets(x: _Array, values: _Array, edges: _Array) -> tuple[_Array, _Array, _Array, _Array]:
    """Return count, mean, lowest and highest value of each bucket [edge k, edge k+1), each (K,)."""
    size = len(edges) - 1
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, size - 1)
    count = np.bincount(index, minlength=size).astype(float)
    mean = np.bincount(index, weights=values, minlength=size) / np.maximum(count, 1.0)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    return count, mean, low, high
