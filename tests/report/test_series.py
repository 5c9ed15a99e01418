"""Curves of arms: means, bands, thinning, and the scale of the horizontal axis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.report.series import BUCKETS, combine


def test_mean_and_band_by_hand() -> None:
    line = combine([(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), (np.array([1.0, 2]), np.array([3.0, 6]))])
    assert line.x.tolist() == [1, 2, 3]
    assert line.mean.tolist() == [2, 4, 3]
    assert line.low.tolist() == [1, 2, 3]
    assert line.high.tolist() == [3, 6, 3]
    assert (line.runs, line.bucket) == (2, 1)


@given(st.integers(BUCKETS + 1, 2000), st.integers(0, 100))
def test_long_curves_are_thinned_honestly(length: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=length)
    x = np.arange(1.0, length + 1)
    line = combine([(x, values)])
    assert len(line.x) <= BUCKETS
    assert (np.diff(line.x) > 0).all()
    assert (line.low <= line.mean + 1e-12).all()
    assert (line.mean <= line.high + 1e-12).all()
    assert line.low.min() == values.min()  # no spike is lost
    assert line.high.max() == values.max()
    several = combine([(x, values), (x, values + 1.0)])
    assert several.mean == pytest.approx(line.mean + 0.5)
    assert several.high - several.low == pytest.approx(np.ones(len(several.x)))
