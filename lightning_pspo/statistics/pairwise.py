"""Estimate strengths of arms from pairwise comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.statistics.intervals import Estimate

_Floats = NDArray[np.float64]
_ITERATIONS = 500
_PRIOR = 0.5  # one tie added to every pair, so that an arm that wins everything has a finite strength


def bradley_terry(wins: _Floats, resamples: int = 2_000, seed: int = 0) -> Sequence[Estimate]:
    """Return the arms' strengths by Bradley and Terry's model (Biometrika 39, 1952), with 95 % intervals.

    The odds that arm i beats arm j are exp(strength_i - strength_j). A tie counts half for both, and every pair of arms
    gets one tie. The intervals are the percentile bootstrap over prompts: comparisons of one prompt are not
    independent.

    Args:
        wins: (P, K, K); ``wins[p, i, j]`` is how often arm i beat arm j on prompt p, ties as halves.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        K natural-log strengths relative to arm 0, whose own is 0.

    >>> wins = np.zeros((10, 2, 2))
    >>> wins[:8, 1, 0] = 1.0  # the second arm wins 8 of 10: odds of 8.5 : 2.5
    >>> wins[8:, 0, 1] = 1.0
    >>> [round(strength.value, 4) for strength in bradley_terry(wins)]
    [0.0, 1.2238]
    """
    table = np.asarray(wins, dtype=np.float64)
    if table.ndim != 3 or table.shape[1] != table.shape[2] or table.shape[1] < 2 or not len(table):
        raise ValueError(f"`wins` must have the shape (P, K, K) with P >= 1 and K >= 2, got {table.shape}.")
    if not (table >= 0.0).all():
        raise ValueError("`wins` must be at least 0.")
    prompts, arms, _ = table.shape
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    flat = table.reshape(prompts, -1)
    sums = np.concatenate([flat.sum(axis=0, keepdims=True), weights @ flat]).reshape(-1, arms, arms)
    strengths = _fit(sums)  # (1 + R, K)
    low, high = np.quantile(strengths[1:], [0.025, 0.975], axis=0) if resamples else (strengths[0], strengths[0])
    return [
        Estimate(float(value), min(float(value), float(bottom)), max(float(value), float(top)))
        for value, bottom, top in zip(strengths[0], low, high, strict=True)
    ]


def _fit(sums: _Floats) -> _Floats:
    """Return the maximum-likelihood strengths of (R, K, K) counts by the usual fixed point (Hunter 2004)."""
    arms = sums.shape[1]
    counts = sums + _PRIOR * (1.0 - np.eye(arms))
    games = counts + counts.transpose(0, 2, 1)
    won = counts.sum(axis=2)
    skill = np.ones_like(won)
    for _ in range(_ITERATIONS):
        met = (games / (skill[:, :, None] + skill[:, None, :])).sum(axis=2)
        new = won / met
        new /= np.exp(np.log(new).mean(axis=1, keepdims=True))
        moved = float(np.abs(np.log(new / skill)).max())
        skill = new
        if moved < 1e-10:
            break
    strengths = np.log(skill)
    return np.asarray(strengths - strengths[:, :1])
