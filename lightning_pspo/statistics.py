"""Intervals for rates. No torch."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a rate (Wilson 1927; without continuity correction).

    It supposes independent trials: for several samples per prompt, pass prompts and not samples.

    Args:
        successes: Number of successes, in [0, trials].
        trials: Number of independent trials, at least 1.
        confidence: Coverage of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: An argument lies outside its range.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    >>> [round(bound, 4) for bound in wilson_interval(0, 20)]
    [0.0, 0.1611]
    """
    if trials < 1:
        raise ValueError(f"`trials` must be at least 1, got {trials}.")
    if not 0 <= successes <= trials:
        raise ValueError(f"`successes` must lie in [0, `trials`] = [0, {trials}], got {successes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1), got {confidence}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    # Rounding would leave about 1e-17 where the bound is 0 or 1 exactly.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high
