"""Unbiased estimates of pass@k, maj@k and best@k from n samples of one prompt.

Each is the exact mean over all subsets of k of the n samples, so one sampling pass gives every k up to n.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the probability that k of a prompt's samples include a correct one (arXiv 2107.03374, equation 1).

    Args:
        samples: Number of samples, n.
        correct: Number of correct ones, in [0, n].
        k: In [1, n].

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 0, 4), pass_at_k(4, 3, 2)
    (0.5, 0.0, 1.0)
    """
    _check(samples, k)
    if not 0 <= correct <= samples:
        raise ValueError(f"`correct` must lie in [0, `samples`] = [0, {samples}], got {correct}.")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def majority_at_k(correct: int, others: Sequence[int], abstentions: int, k: int) -> float:
    """Return the probability that the most frequent answer among k of a prompt's samples is the correct one.

    Every cluster of equivalent answers is one candidate (arXiv 2203.11171). Samples without an answer are drawn like
    the others but do not vote; if none of the k has an answer, the vote is lost. Ties are broken at random: the correct
    answer gets one over the number of tied answers.

    Args:
        correct: Samples with the correct answer, at least 0.
        others: Sizes of the clusters of the other answers, each at least 1.
        abstentions: Samples without an answer, at least 0.
        k: Votes, in [1, number of samples].

    >>> majority_at_k(2, [1], 0, 3), majority_at_k(1, [1, 1], 0, 3), majority_at_k(1, [], 1, 1)
    (1.0, 0.3333333333333333, 0.5)
    """
    if min([correct, abstentions, *(size - 1 for size in others)]) < 0:
        raise ValueError(
            f"`correct` and `abstentions` must be at least 0 and all of `others` at least 1, got {correct}, "
            f"{abstentions} and {list(others)}."
        )
    _check(correct + sum(others) + abstentions, k)
    return _majority(correct, tuple(sorted(others, reverse=True)), abstentions, k)


@lru_cache(maxsize=65536)  # most prompts of a source fall into few patterns
def _majority(correct: int, others: tuple[int, ...], abstentions: int, k: int) -> float:
    samples = correct + sum(others) + abstentions
    if not correct or not others:
        return pass_at_k(samples, correct, k)
    if k == samples:
        tied = sum(size == correct for size in others)
        return 0.0 if others[0] > correct else 1.0 / (1 + tied)
    # Draw each sample independently with probability k / n: given that k were drawn, every subset of k is equally
    # likely. Unlike products of binomial coefficients, these terms neither overflow nor cancel.
    rate = k / samples
    silent = _thinned(abstentions, rate)
    right = _thinned(correct, rate)
    clusters = [_thinned(size, rate) for size in others]
    won = 0.0
    for votes in range(1, min(correct, k) + 1):
        won += right[votes] * _not_beaten(clusters, silent, votes, k - votes)
    return float(min(1.0, won / _thinned(samples, rate)[k]))


def _not_beaten(clusters: Sequence[_Floats], silent: _Floats, votes: int, rest: int) -> float:
    """Sum the probability of drawing ``rest`` samples with no cluster above ``votes``, divided by 1 + its ties."""
    ties = rest // votes
    table = np.zeros((ties + 1, rest + 1))  # probability of (tied clusters, samples drawn)
    table[0, 0] = 1.0
    for cluster in clusters:
        grown = np.zeros_like(table)
        for drawn, probability in enumerate(cluster[: min(votes, rest) + 1].tolist()):
            if drawn < votes:
                grown[:, drawn:] += probability * table[:, : rest + 1 - drawn]
            else:
                grown[1:, drawn:] += probability * table[:-1, : rest + 1 - drawn]
        table = grown
    silence = np.resize(np.append(silent, np.zeros(rest + 1)), rest + 1)
    return float(((table @ silence[::-1]) / np.arange(1, ties + 2)).sum())


def _thinned(size: int, rate: float) -> _Floats:
    """Return the probabilities of drawing 0 to ``size`` samples of a cluster, binomial, (size + 1,)."""
    counts = np.arange(1, size + 1)
    steps = np.concatenate([[0.0], np.cumsum(np.log((size - counts + 1) / counts) + np.log(rate) - np.log1p(-rate))])
    probabilities: _Floats = np.exp(steps + size * np.log1p(-rate))
    return probabilities


def best_at_k(scores: Sequence[float], values: Sequence[float], k: int) -> float:
    """Return the mean value of the best-scored of k of a prompt's samples; ties are broken at random.

    Args:
        scores: (n,) score by which a sample is chosen, such as a reward.
        values: (n,) value of the chosen sample, such as 1 for a correct one.
        k: In [1, n].

    >>> best_at_k([0.1, 0.9, 0.5], [1, 0, 1], 1), best_at_k([0.1, 0.9, 0.5], [1, 0, 1], 3)
    (0.6666666666666666, 0.0)
    """
    _check(len(scores), k)
    if len(values) != len(scores):
        raise ValueError(f"`values` must be as many as `scores`, {len(scores)}, got {len(values)}.")
    by_score: dict[float, list[float]] = {}
    for score, value in zip(scores, values, strict=True):
        by_score.setdefault(float(score), []).append(float(value))
    total, seen = 0.0, 0
    for score in sorted(by_score):
        tied = by_score[score]
        share = (comb(seen + len(tied), k) - comb(seen, k)) / comb(len(scores), k)
        total += share * sum(tied) / len(tied)
        seen += len(tied)
    return total


def _check(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"`k` must lie in [1, number of samples] = [1, {samples}], got {k}.")
