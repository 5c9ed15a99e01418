"""Strengths from comparisons of pairs."""

import numpy as np
import pytest

from lightning_pspo.statistics import bradley_terry


def test_strengths_are_recovered():
    generator = np.random.default_rng(0)
    true = np.array([0.0, 0.7, -0.5])
    wins = np.zeros((4000, 3, 3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        won = generator.random(4000) < 1 / (1 + np.exp(true[j] - true[i]))
        wins[:, i, j], wins[:, j, i] = won, ~won
    estimates = bradley_terry(wins, resamples=200)
    assert all(estimate.low <= strength <= estimate.high for estimate, strength in zip(estimates, true, strict=True))
    assert [estimate.value for estimate in estimates] == pytest.approx(true, abs=0.1)


def test_two_arms_by_hand_and_clusters_widen_the_interval():
    wins = np.zeros((50, 2, 2))
    wins[:30, 1, 0], wins[30:, 0, 1] = 1.0, 1.0
    plain, clustered = bradley_terry(wins)[1], bradley_terry(wins.reshape(10, 5, 2, 2).sum(axis=1))[1]
    assert plain.value == pytest.approx(np.log(30.5 / 20.5))
    assert clustered.high - clustered.low > 1.5 * (plain.high - plain.low)
    with pytest.raises(ValueError, match="shape"):
        bradley_terry(np.zeros((2, 2)))
