"""Confidence intervals of means over prompts.

Samples of one prompt are not independent, so every interval takes one number per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, isfinite, lgamma, log, log1p, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_LEVEL = 0.95
_BISECTIONS = 60
_PRIOR = 0.25  # the sum of squares of one fair coin


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with the bounds of its 95 % interval, clustered by prompt."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a rate (Wilson 1927; without continuity correction).

    Args:
        successes: In [0, trials].
        trials: At least 1, independent: with several samples per prompt, count prompts, not samples.
        confidence: Coverage of the two-sided interval, in (0, 1).

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if trials < 1:
        raise ValueError(f"`trials` must be at least 1, got {trials}.")
    if not 0 <= successes <= trials:
        raise ValueError(f"`successes` must lie in [0, `trials`] = [0, {trials}], got {successes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1), got {confidence}.")
    low, high = _wilson(successes / trials, trials, confidence)
    # Rounding would leave about 1e-17 where the bound is exactly 0 or 1.
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == trials else min(1.0, high))


def _wilson(rate: float, trials: float, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    return centre - half, centre + half


def share_interval(shares: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Return the mean of one share per prompt, such as the share of correct samples, with a 95 % interval.

    Wilson's interval for an effective number of prompts: the number of coin tosses whose mean would vary as much as
    this one (Franco et al., Journal of Survey Statistics and Methodology 7, 2019). One fair coin is added to the
    variance, so that a few prompts that happen to agree do not look certain. With one sample per prompt it is Wilson's
    own interval; docs/evaluation.md gives its coverage.

    Args:
        shares: (n,) in [0, 1], one per prompt, at least 1.

    >>> estimate = share_interval([1.0] * 8 + [0.0] * 2)
    >>> round(estimate.low, 4), round(estimate.high, 4)
    (0.4902, 0.9433)
    >>> estimate = share_interval([0.75, 0.85] * 5)  # the same mean from prompts that are alike
    >>> round(estimate.low, 4), round(estimate.high, 4)
    (0.6894, 0.8782)
    """
    values = np.asarray(shares, dtype=np.float64)
    prompts = len(values)
    if not prompts or not (values >= 0.0).all() or not (values <= 1.0).all():
        raise ValueError(f"`shares` must be at least one number in [0, 1], got {values[:5].tolist()}.")
    mean = float(values.mean())
    coins = prompts * mean * (1.0 - mean)  # the sum of squares if every prompt were one coin toss
    squares = float(((values - mean) ** 2).sum())
    trials = prompts * max(1.0, (coins + _PRIOR) / (squares + _PRIOR))
    low, high = _wilson(mean, trials, _LEVEL)
    # Rounding may push the bounds of a mean of 0 or 1 past it.
    return Estimate(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)))


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Return the mean of one unbounded number per prompt, such as a length, with Student's 95 % interval.

    Args:
        values: (n,) finite, one per prompt, at least 1; the interval of a single value is unbounded.

    >>> estimate = mean_interval([1.0, 2.0, 3.0])  # 2 -+ 4.303 / sqrt(3)
    >>> round(estimate.low, 3), round(estimate.high, 3)
    (-0.484, 4.484)
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"`values` must be at least one finite number, got {array[:5].tolist()}.")
    mean = float(array.mean())
    if len(array) == 1:
        return Estimate(mean, float("-inf"), float("inf"))
    half = t_quantile((1 + _LEVEL) / 2, len(array) - 1) * float(array.std(ddof=1)) / sqrt(len(array))
    return Estimate(mean, mean - half, mean + half)


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution, by bisection.

    Args:
        probability: In (0, 1).
        freedom: Degrees of freedom, above 0, whole or not.

    >>> round(t_quantile(0.975, 4), 4), round(t_quantile(0.025, 1), 4)
    (2.7764, -12.7062)
    """
    if not 0.0 < probability < 1.0 or not freedom > 0.0:
        raise ValueError(f"`probability` must lie in (0, 1) and `freedom` above 0, got {probability} and {freedom}.")
    if probability < 0.5:
        return -t_quantile(1.0 - probability, freedom)
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_probability(t: float, freedom: float) -> float:
    """Return the probability that Student's t is at most ``t``.

    >>> round(t_probability(-2.0, 10), 6)
    0.036694
    """
    if not isfinite(t):
        return float(t > 0)
    tail = 0.5 * _beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1.0 - tail if t > 0 else tail


def _beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta(b, a, 1.0 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    # Lentz's method; on this side of the symmetry no denominator comes near 0.
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return front * fraction
