"""pass@k, maj@k and best@k against the enumeration of all subsets of the samples."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.statistics import best_at_k, majority_at_k, pass_at_k


def enumerated_majority(labels, k):
    """Return maj@k over all subsets of ``labels``: 0 is correct, None abstains, others are other answers."""
    total, subsets = Fraction(0), 0
    for subset in combinations(labels, k):
        votes = [label for label in subset if label is not None]
        top = max((votes.count(label) for label in set(votes)), default=0)
        winners = [label for label in set(votes) if votes.count(label) == top]
        if 0 in winners:
            total += Fraction(1, len(winners))
        subsets += 1
    return float(total / subsets)


def test_many_samples():
    # 1 - C(990, 100) / C(1000, 100) = 1 - prod_{i < 10} (900 - i) / (1000 - i)
    product = 1.0
    for i in range(10):
        product *= (900 - i) / (1000 - i)
    assert pass_at_k(1000, 10, 100) == pytest.approx(1 - product, rel=1e-12)
    assert majority_at_k(400, [300, 300], 0, 1000) == 1.0  # nor does the vote of a thousand overflow


@given(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.integers(1, 15))
def test_majority_is_the_mean_over_all_subsets(correct, others, abstentions, k):
    labels = [0] * correct + [name for name, size in enumerate(others, 1) for _ in range(size)] + [None] * abstentions
    if not labels:
        return
    k = min(k, len(labels))
    expected = enumerated_majority(labels, k)
    assert majority_at_k(correct, others, abstentions, k) == pytest.approx(expected, abs=1e-10)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7), st.integers(1, 7))
def test_best_is_the_mean_over_all_subsets(samples, k):
    k = min(k, len(samples))
    total = Fraction(0)
    subsets = list(combinations(samples, k))
    for subset in subsets:
        top = max(score for score, _ in subset)
        tied = [value for score, value in subset if score == top]
        total += Fraction(sum(tied), len(tied))
    scores, values = zip(*samples, strict=True)
    assert best_at_k(scores, values, k) == pytest.approx(float(total / len(subsets)), abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_choosing_by_correctness_is_pass_at_k(flags, k):
    """So pass@k is the share of subsets with a correct sample."""
    k = min(k, len(flags))
    assert best_at_k(flags, flags, k) == pytest.approx(pass_at_k(len(flags), sum(flags), k), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 1, 5), r"`k` must lie in \[1, number of samples\] = \[1, 4\], got 5"),
        (lambda: pass_at_k(4, 5, 1), r"`correct` must lie in .* got 5"),
        (lambda: majority_at_k(1, [0], 0, 1), r"all of `others` at least 1, got 1, 0 and \[0\]"),
        (lambda: majority_at_k(0, [], 0, 1), "got 1"),
        (lambda: best_at_k([1.0], [1.0, 2.0], 1), "`values` must be as many as `scores`, 1, got 2"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
