from math import comb

import pytest

from lightning_pspo.statistics import wilson_interval


def test_wilson_hand_computed():
    # z = 1.959964, z^2 = 3.841459, n = 10, p = 0.8:
    # (0.8 + 0.19207296 -+ 1.959964 * sqrt(0.016 + 0.0096036475)) / 1.3841459
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.490162, abs=1e-6)
    assert high == pytest.approx(0.943318, abs=1e-6)


def test_wilson_bounds_solve_the_score_equation():
    z2 = 2.5758293035489004**2
    for successes, trials in ((1, 7), (50, 100), (900, 1000)):
        rate = successes / trials
        for bound in wilson_interval(successes, trials, confidence=0.99):
            assert (rate - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / trials, rel=1e-9)


def test_wilson_covers_about_as_often_as_it_says():
    rate, trials = 0.3, 40
    covered = sum(
        comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
        for k in range(trials + 1)
        if wilson_interval(k, trials)[0] <= rate <= wilson_interval(k, trials)[1]
    )
    assert 0.92 < covered < 0.98


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
