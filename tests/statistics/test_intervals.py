"""Intervals against the equations that define them, tables and simulation."""

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.statistics import mean_interval, share_interval, t_quantile, wilson_interval


def test_wilson_bounds_solve_the_score_equation():
    z2 = 2.5758293035489004**2
    for successes, trials in ((1, 7), (50, 100), (900, 1000)):
        rate = successes / trials
        for bound in wilson_interval(successes, trials, confidence=0.99):
            assert (rate - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / trials, rel=1e-9)


def test_wilson_at_the_ends():
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(0, 5)[1] == pytest.approx(1 - wilson_interval(5, 5)[0], abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "`trials` must be at least 1, got 0"),
        ((6, 5), r"`successes` must lie in .*5\], got 6"),
        ((-1, 5), "got -1"),
        ((1, 5, 1.0), r"`confidence` must lie in \(0, 1\), got 1.0"),
    ],
)
def test_wilson_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)


def test_a_share_per_prompt_with_one_sample_each_is_wilson():
    for correct, prompts in ((0, 12), (3, 7), (99, 100), (40, 40)):
        estimate = share_interval([1.0] * correct + [0.0] * (prompts - correct))
        assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(correct, prompts), abs=1e-12)
        assert estimate.value == correct / prompts


def test_samples_that_differ_within_prompts_narrow_the_interval():
    # Sums of squares: 10 * 0.25^2 = 0.625, and 10 / 4 for coins, so that each of the 10 prompts counts as
    # (2.5 + 0.25) / (0.625 + 0.25) = 22 / 7.
    estimate = share_interval([0.25, 0.75] * 5)
    assert estimate.value == 0.5
    n, z2 = 10 * 22 / 7, 1.959963984540054**2
    assert estimate.high - 0.5 == pytest.approx(sqrt(z2) * sqrt(0.25 / n + z2 / (4 * n * n)) / (1 + z2 / n), rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_mirrors(shares):
    estimate, mirrored = share_interval(shares), share_interval([1.0 - share for share in shares])
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.low == pytest.approx(1.0 - mirrored.high, abs=1e-9)


@pytest.mark.parametrize(
    ("samples", "prompts", "rate", "alike"),
    [(1, 40, 0.3, 1.0), (4, 30, 0.5, 0.4), (16, 30, 0.1, 0.4), (8, 100, 0.95, 0.6)],
)
def test_coverage_of_clustered_shares(samples, prompts, rate, alike):
    """Prompts of beta-distributed difficulty; ``alike`` is the correlation of two samples of a prompt."""
    generator = np.random.default_rng(11)
    trials = 1500
    if alike < 1:
        weight = 1 / alike - 1
        difficulty = generator.beta(rate * weight, (1 - rate) * weight, (trials, prompts))
    else:
        difficulty = np.full((trials, prompts), rate)
    estimate = [share_interval(row) for row in generator.binomial(samples, difficulty) / samples]
    assert 0.93 < np.mean([interval.low <= rate <= interval.high for interval in estimate]) < 0.97


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [(0.975, 1, 12.7062), (0.975, 10, 2.2281), (0.975, 1e6, 1.9600), (0.9, 3, 1.6377), (0.025, 5, -2.5706)],
)
def test_quantiles_of_t_are_those_of_the_tables(probability, freedom, value):
    assert t_quantile(probability, freedom) == pytest.approx(value, abs=1e-4)


def test_a_mean_length_has_students_interval():
    estimate = mean_interval([10, 12, 14, 16])  # mean 13, s^2 = 20 / 3, t(3) = 3.1824
    assert estimate.high == pytest.approx(13 + 3.182446 * sqrt(20 / 3 / 4), abs=1e-5)
    assert mean_interval([5.0]).low == -inf


@pytest.mark.parametrize("call", [lambda: share_interval([]), lambda: share_interval([1.2]), lambda: mean_interval([])])
def test_intervals_refuse(call):
    with pytest.raises(ValueError, match="must be at least one"):
        call()
