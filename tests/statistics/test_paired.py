"""Paired comparisons against enumeration, hand-computed numbers and simulation."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest

from lightning_pspo.statistics import compare_arms, holm, t_quantile
from lightning_pspo.statistics.paired import sign_flip_test


def test_one_sample_a_prompt_is_mcnemars_exact_test():
    first = np.array([[0.0] * 9 + [1.0] * 2 + [1.0] * 30])
    second = np.array([[1.0] * 9 + [0.0] * 2 + [1.0] * 30])
    difference = compare_arms(first, second)
    assert difference.p_value == pytest.approx(2 * sum(comb(11, i) for i in range(3)) / 2**11)
    assert difference.estimate.value == pytest.approx(7 / 41)
    assert (difference.wins, difference.losses) == (pytest.approx(9 / 41), pytest.approx(2 / 41))


def test_the_sign_flip_test_counts_every_pattern():
    differences = np.array([0.5, -0.25, 1.0, 0.0, 0.75, 0.25])
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((-1, 1), repeat=6)]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_test(differences, 1, np.random.default_rng(0)) == pytest.approx(expected)


def test_drawn_patterns_come_near_the_exact_ones():
    generator = np.random.default_rng(0)
    differences = generator.choice([-0.5, 0.25, 0.5, 1.0], size=14)
    exact = sign_flip_test(differences, 1, generator)
    drawn = sign_flip_test(np.concatenate([differences, [1e-12] * 14]), 200_000, generator)
    assert 0.001 < exact < 0.5
    assert drawn == pytest.approx(exact, abs=0.004)


def test_runs_are_clusters():
    """Every prompt alike: the interval is that of the runs' means, Student's with 2 + 2 degrees of freedom."""
    first = np.repeat([[0.30], [0.34], [0.38]], 4000, axis=1)
    second = np.repeat([[0.50], [0.54], [0.58]], 4000, axis=1)
    difference = compare_arms(first, second)
    half = t_quantile(0.975, 4) * sqrt(2 * 0.04**2 / 3)
    assert difference.estimate.value == pytest.approx(0.2)
    assert difference.estimate.high - difference.estimate.value == pytest.approx(half, rel=0.01)
    assert difference.same_runs.high - difference.same_runs.low < 0.005
    assert 0.001 < difference.p_value < 0.01  # t = 6.12 of 4 degrees of freedom: 0.0036
    assert difference.p_value == pytest.approx(0.0036, abs=0.0002)


def test_the_order_of_the_arms_turns_the_sign():
    generator = np.random.default_rng(3)
    first, second = generator.random((2, 50)), generator.random((3, 50))
    forward, backward = compare_arms(first, second), compare_arms(second, first)
    assert forward.estimate.value == pytest.approx(-backward.estimate.value)
    assert forward.estimate.low == pytest.approx(-backward.estimate.high)
    assert forward.p_value == pytest.approx(backward.p_value)


def test_agreement_on_a_few_prompts_proves_nothing():
    same = np.ones((1, 8))
    difference = compare_arms(same, same)
    assert difference.p_value == 1.0
    assert difference.estimate.low < -0.1
    assert difference.estimate.high > 0.1


@pytest.mark.parametrize("runs", [1, 3])
def test_coverage(runs):
    """Of the true difference, by simulation; docs/evaluation.md has more of it."""
    generator = np.random.default_rng(runs)
    covered, trials = 0, 300
    for _ in range(trials):
        difficulty = generator.beta(1, 1, size=60)
        arms = []
        for gain in (0.0, 0.1):
            shifts = gain + generator.normal(scale=0.02 if runs > 1 else 0.0, size=(runs, 1))
            arms.append(generator.binomial(4, np.clip(0.8 * difficulty + shifts, 0, 1)) / 4)
        difference = compare_arms(*arms, resamples=1000, seed=int(generator.integers(10**9))).estimate
        covered += difference.low <= 0.1 <= difference.high
    assert 0.91 < covered / trials < 0.99


def test_paired_runs_share_what_pairs_share():
    """The runs of a pair move together: pairing removes it, and a run's own level stays in the interval."""
    generator = np.random.default_rng(0)
    levels = np.array([[0.1], [0.5], [0.9]])
    first = (generator.random((3, 400)) < levels).astype(float)
    second = (generator.random((3, 400)) < levels + 0.1).astype(float)
    paired, unpaired = compare_arms(first, second, paired_runs=True), compare_arms(first, second)
    assert paired.estimate.high - paired.estimate.low < 0.3 < unpaired.estimate.high - unpaired.estimate.low
    moved = compare_arms(first, second[::-1], paired_runs=True)
    assert moved.estimate.low < -0.5 < 0.5 < moved.estimate.high


def test_holm():
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((1, 3)), np.zeros((1, 4)), "the same prompts, at least 2, got 3 and 4"),
        (np.zeros((1, 1)), np.zeros((1, 1)), "at least 2, got 1 and 1"),
        (np.zeros((0, 3)), np.zeros((1, 3)), "at least one run, got 0 and 1"),
    ],
)
def test_bad_arguments(first, second, message):
    with pytest.raises(ValueError, match=message):
        compare_arms(first, second)


def test_paired_runs_must_come_in_pairs():
    with pytest.raises(ValueError, match="paired arms must have equally many runs, got 3 and 1"):
        compare_arms(np.zeros((3, 4)), np.zeros((1, 4)), paired_runs=True)
