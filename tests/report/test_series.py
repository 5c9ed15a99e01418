"""Curves of arms: means, bands, thinning, and the scale of the horizontal axis."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.report import read_run, render_page
from lightning_pspo.report.arms import group
from lightning_pspo.report.series import BUCKETS, arm_line, combine
from tests.support.report_runs import training_rows, write_metrics, write_run


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


def by_rollout(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return rows as they are logged now; those of `training_rows` are by optimiser steps."""
    return [row | {"step": row["step"] / 4, "train/optimizer_steps": row["step"]} for row in rows]


def test_steps_of_earlier_versions_become_rollouts(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one", 1))
    other = read_run(write_run(tmp_path / "other", 1, settings={"model": {"updates_per_rollout": 1}}))
    assert (run.steps_per_rollout, other.steps_per_rollout) == (4, 2)
    (arm,) = group([run])
    line = arm_line(arm, "train/reward", by_step=False)
    assert line is not None
    assert line.x.tolist() == list(range(1, 21))
    odd = read_run(write_run(tmp_path / "odd", 1, settings={"model": {"minibatches_per_rollout": 3}}))
    assert odd.steps_per_rollout is None
    page = render_page(group([run, odd]))
    assert "optimiser step" in page
    assert ">80</text>" in page  # both reach it


def test_a_run_of_an_earlier_version_that_goes_on_by_rollouts(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", rollouts=4)
    write_metrics(root, by_rollout(training_rows(6, first=4)), version=1)  # resumed after rollout 3
    run = read_run(root)
    assert run.curves["train/reward"][0].tolist() == [1, 2, 3, 4, 5, 6]
    (root / "config.yaml").unlink()  # the second part says it as well
    again = read_run(root)
    assert again.steps_per_rollout == 4
    assert again.curves["train/reward"][0].tolist() == [1, 2, 3, 4, 5, 6]
