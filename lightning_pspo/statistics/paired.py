"""Compare two arms that answered the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.statistics.intervals import Estimate, t_probability, t_quantile

_Floats = NDArray[np.float64]
_EXACT_PROMPTS = 14  # 2 ** 14 sign patterns are enumerated, more are drawn


@dataclass(frozen=True, slots=True)
class Difference:
    """The second arm's mean minus the first's, with its 95 % interval and the p-value of no difference.

    With several runs in an arm they are about the training recipe, whose next run would differ; with a single run in
    each arm, about these two runs.
    """

    estimate: Estimate
    p_value: float  # two-sided
    same_runs: Estimate  # with the interval over prompts alone, about these runs
    first: float  # mean of the first arm
    second: float  # mean of the second arm
    prompts: int  # P
    wins: float  # share of prompts on which the second arm is better
    losses: float  # share of prompts on which it is worse


def compare_arms(
    first: _Floats, second: _Floats, resamples: int = 10_000, seed: int = 0, *, paired_runs: bool = False
) -> Difference:
    """Compare two arms prompt by prompt.

    One run in each arm: the interval is the percentile bootstrap over prompts, widened for small samples (arXiv
    1411.5279), with one prompt added on which both arms toss a fair coin, so that a change these prompts happen not to
    show is not ruled out. The test flips the sign of whole prompts' differences; with one sample per prompt it is
    McNemar's exact test. Several runs in an arm: the variance has a part from prompts and a part from runs, each
    clustered, less the residual that is in both; interval and test are Student's with Satterthwaite's degrees of
    freedom, because a bootstrap of two or three runs is far too narrow. An arm of one run adds no variance of runs.
    Paired runs: the same two parts of the differences between the runs of a pair, with S - 1 degrees of freedom;
    docs/study.md gives coverage and size.

    Args:
        first: (S, P) values in [0, 1], S >= 1 runs by P >= 2 prompts, such as the share of correct samples.
        second: (S', P) likewise, the same prompts in the same order.
        resamples: Number of bootstrap resamples and of random sign patterns.
        seed: Seed of both.
        paired_runs: Run s of both arms belongs together, such as by its seed; S = S'.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    prompts = first.shape[1]
    if not len(first) or not len(second):
        raise ValueError(f"each arm must have at least one run, got {len(first)} and {len(second)}.")
    if second.shape[1] != prompts or prompts < 2:
        raise ValueError(
            f"the arms must have the same prompts, at least 2, got {prompts} and {second.shape[1]} of them."
        )
    if paired_runs and len(first) != len(second):
        raise ValueError(f"paired arms must have equally many runs, got {len(first)} and {len(second)}.")
    differences = (second.mean(axis=0) - first.mean(axis=0)).round(12)  # equal differences must have the same bits
    generator = np.random.default_rng(seed)
    same_runs = _bootstrap(differences, resamples, generator)
    if len(first) == len(second) == 1:
        estimate, p_value = same_runs, sign_flip_test(differences, resamples, generator)
    elif paired_runs:
        estimate, p_value = _over_pairs(second - first, differences)
    else:
        estimate, p_value = _over_runs(first, second, differences)
    return Difference(
        estimate,
        p_value,
        same_runs,
        float(first.mean()),
        float(second.mean()),
        prompts,
        float((differences > 0).mean()),
        float((differences < 0).mean()),
    )


def _bootstrap(differences: _Floats, resamples: int, generator: np.random.Generator) -> Estimate:
    prompts, mean = len(differences), float(differences.mean())
    tossed = [-1.0, 0.0, 0.0, 1.0]  # the four differences of two fair coins
    values, indices = np.unique(np.concatenate([differences, tossed]), return_inverse=True)
    weights = np.bincount(indices, weights=[1.0] * prompts + [0.25] * len(tossed))
    drawn = generator.multinomial(prompts + 1, weights / (prompts + 1), size=resamples) @ values / (prompts + 1)
    level = NormalDist().cdf(-sqrt(prompts / (prompts - 1)) * t_quantile(0.975, prompts - 1))
    low, high = np.quantile(drawn, [level, 1 - level])
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def sign_flip_test(differences: _Floats, resamples: int, generator: np.random.Generator) -> float:
    """Return the two-sided p-value of the mean of ``differences`` if the sign of each prompt were a coin toss.

    Exact if all non-zero differences have one size or there are at most 14 of them; else from ``resamples`` random
    patterns, with the observed one counted among them.

    >>> sign_flip_test(np.array([1.0, 1.0, 1.0, 1.0, -1.0, 0.0]), 1, np.random.default_rng(0))  # 12 of 32 patterns
    0.375
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0.0]), return_counts=True)
    observed = abs(float(differences.sum())) - 1e-9
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        patterns, size = int(counts[0]), float(sizes[0])
        extreme = sum(comb(patterns, ups) for ups in range(patterns + 1) if abs(2 * ups - patterns) * size >= observed)
        return float(min(1.0, extreme / 2**patterns))
    if counts.sum() <= _EXACT_PROMPTS:
        sums = np.zeros(1)
        for size in np.repeat(sizes, counts):
            sums = np.concatenate([sums - size, sums + size])
        return float((np.abs(sums) >= observed).mean())
    drawn = (2 * generator.binomial(counts, 0.5, size=(resamples, len(counts))) - counts) @ sizes
    return float((1 + (np.abs(drawn) >= observed).sum()) / (1 + resamples))


def _over_runs(first: _Floats, second: _Floats, differences: _Floats) -> tuple[Estimate, float]:
    mean, prompts = float(differences.mean()), len(differences)
    coins = 0.25 / len(first) + 0.25 / len(second)
    over_prompts = (float(((differences - mean) ** 2).sum()) + coins) / (prompts * (prompts - 1))
    by_arm = [_run_variance(arm) for arm in (first, second)]
    over_runs = sum(total for total, _ in by_arm)
    residual = sum(inner for _, inner in by_arm)
    share = max(0.0, over_runs - residual) / over_runs if over_runs > 0.0 else 0.0
    variance = over_prompts + share * over_runs
    # Degrees of freedom from the variances that still include the residual, whose estimate is noisy as well.
    spread = over_prompts**2 / (prompts - 1)
    spread += sum(total**2 / (len(arm) - 1) for arm, (total, _) in zip((first, second), by_arm, strict=True) if total)
    freedom = (over_prompts + over_runs) ** 2 / spread
    half = t_quantile(0.975, freedom) * sqrt(variance)
    p_value = 2 * t_probability(-abs(mean) / sqrt(variance), freedom)
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half)), p_value


def _over_pairs(pairs: _Floats, differences: _Floats) -> tuple[Estimate, float]:
    runs, prompts = pairs.shape
    mean, (over_runs, residual) = float(differences.mean()), _run_variance(pairs)
    over_prompts = (float(((differences - mean) ** 2).sum()) + 0.5 / runs) / (prompts * (prompts - 1))
    error = sqrt(over_prompts + max(0.0, over_runs - residual))
    half = t_quantile(0.975, runs - 1) * error
    p_value = 2 * t_probability(-abs(mean) / error, runs - 1)
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half)), p_value


def _run_variance(arm: _Floats) -> tuple[float, float]:
    """Return the variance of an arm's mean over its runs, and the residual (run by prompt) part of it."""
    runs, prompts = arm.shape
    if runs == 1:
        return 0.0, 0.0
    by_run = arm.mean(axis=1)
    left = arm - by_run[:, None] - arm.mean(axis=0)[None] + arm.mean()
    residual = float((left**2).sum()) / ((runs - 1) * (prompts - 1))
    return float(by_run.var(ddof=1)) / runs, residual / (runs * prompts)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons by Holm's method (Scandinavian Journal of Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
