"""The terms by length, by hand-computed numbers."""

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.rewards import Correctness, GroupLength, SoftOverlong, TargetLength, WeightedSum
from tests.support.samples import sample


def of_lengths(reward, *lengths):
    return reward([sample(tokens=tokens) for tokens in lengths])


def test_soft_overlong_is_the_papers_formula():
    expected = [0.0, 0.0, -0.05, -0.25, -0.5, -0.95, -1.0, -1.0, -1.0]
    reward = SoftOverlong(max_tokens=100, buffer=20)
    assert of_lengths(reward, 1, 80, 81, 85, 90, 99, 100, 101, 500) == pytest.approx(expected)
    assert of_lengths(SoftOverlong(max_tokens=4, buffer=4), 0, 1, 4) == [0.0, -0.25, -1.0]
    dapo = WeightedSum(
        terms={"right": Correctness(wrong=-1.0, no_answer=-1.0), "overlong": reward},
        weights={"right": 1.0, "overlong": 1.0},
    )
    assert dapo([sample(tokens=50), sample(tokens=90), sample("It is 71", tokens=100)]) == [1.0, 0.5, -2.0]


def test_target_length():
    expected = [-0.99, -0.5, -0.1, 0.0, -0.1, -0.5, -1.0, -1.0]
    assert of_lengths(TargetLength(tokens=100), 1, 50, 90, 100, 110, 150, 200, 1000) == pytest.approx(expected)
    assert of_lengths(TargetLength(tokens=100, tolerance=20), 80, 120, 121, 79) == [0.0, 0.0, -0.01, -0.01]


def test_group_length_compares_within_the_group_only():
    first = [sample(tokens=10), sample(tokens=20), sample("It is 71", tokens=10), sample("It is 71", tokens=30)]
    second = [sample(tokens=300, identity="p2"), sample(tokens=500, identity="p2")]
    same = [sample(tokens=7, identity="p3")] * 2
    assert GroupLength()(first + second + same) == [0.5, 0.0, 0.0, -0.5, 0.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        (SoftOverlong, {"max_tokens": 0, "buffer": 1}, "`max_tokens` must be at least 1, got 0"),
        (SoftOverlong, {"max_tokens": 100, "buffer": 0}, r"`buffer` must lie in .* = \[1, 100\], got 0"),
        (SoftOverlong, {"max_tokens": 100, "buffer": 101}, r"`buffer` must lie in .* = \[1, 100\], got 101"),
        (TargetLength, {"tokens": 0}, "`tokens` must be at least 1, got 0"),
        (TargetLength, {"tokens": 1, "tolerance": -1}, "`tolerance` must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(reward, settings, message):
    with pytest.raises(InputError, match=message):
        reward(**settings)
