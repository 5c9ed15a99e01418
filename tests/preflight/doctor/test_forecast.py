"""The probe's plan and the forecast, against numbers worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.preflight.doctor.forecast import (
    FULL_STEPS,
    Costs,
    RunSize,
    Step,
    extrapolated_mib,
    forecast,
    line,
    next_size,
)


@given(
    full=st.integers(1, 300),
    fixed=st.floats(0.0, 5.0),
    each=st.floats(0.001, 5.0),
    budget=st.floats(1.0, 60.0),
    sample=st.integers(1, 200),
)
def test_the_plan_ends_in_time(full: int, fixed: float, each: float, budget: float, sample: int) -> None:
    """After the first small rollout, none begins that should take longer than the time left."""
    done: list[Step] = []
    left = budget
    while size := next_size(done, full, sample, left):
        assert 1 <= size <= full
        expected = size * done[-1].seconds / done[-1].prompts if done else 0.0
        assert not done or expected <= left * 1.0001
        done.append(Step(size, 10 * size, fixed + each * size))
        left -= done[-1].seconds
        assert len(done) <= 24
    assert done
    if sum(fixed + each * size for size in (min(2, full), *[full] * 5)) < budget / 4 and sample <= full:
        assert sum(step.prompts == full for step in done) >= FULL_STEPS


def test_a_line_through_smaller_rollouts() -> None:
    steps = [Step(2, 0, 9.0), Step(4, 0, 3.0, {"update": 2.0}), Step(8, 0, 5.0, {"update": 4.0})]
    run = RunSize(prompts=16, rollouts=10, validations=2.0, problems=30, checkpoints=3)
    costs = Costs(start=5.0, end=1.0, checkpoint=2.0, validated=0.1)
    ahead = forecast(steps, run, [100.0], costs)
    assert not ahead.measured
    assert ahead.rollout_s == pytest.approx(1.0 + 0.5 * 16)  # the first rollout warms up
    assert ahead.phases == {"update": pytest.approx(8.0)}
    assert ahead.validation_s == pytest.approx(3.0)
    rest = 2 * 3.0 + 3 * 2.0 + 5.0 + 1.0
    assert ahead.run_s == pytest.approx(10 * 9.0 + rest)
    # no rollout of 16 prompts is faster than one of 8, or slower than in proportion to the smallest
    assert (ahead.run_low_s, ahead.run_high_s) == (pytest.approx(10 * 5.0 + rest), pytest.approx(10 * 12.0 + rest))
    steps = [Step(n, 0, 1.0, peaks_mib={"update": 100.0 + n}, passed_tokens=100 * n) for n in (1, 2, 4)]
    assert extrapolated_mib(steps, replace(run, pass_tokens=400)) == 104.0  # the largest pass is full
    assert extrapolated_mib(steps, replace(run, pass_tokens=800)) == 108.0
    assert extrapolated_mib(steps, replace(run, pass_tokens=800, minibatches=4)) == 116.0  # 1600 / 4 tokens
    known = [Step(n, 0, 1.0, {}, {"reward": 90.0, "update": 100.0 + n}, 100 * n) for n in (2, 4)]
    assert extrapolated_mib(known, replace(run, pass_tokens=1600)) == 116.0  # the line; in proportion it would be 146
    jumped = [Step(n, 0, 1.0, {}, {"reward": 90.0, "update": 60.0 + 10 * n}, 100 * n) for n in (2, 4)]
    assert extrapolated_mib(jumped, replace(run, pass_tokens=1600)) == 130.0  # 90 + 10 * 4; the line says 220
    assert line([4.0, 8.0], [5.0, 3.0], 16.0) == 4.0  # no slope below 0


def test_rollouts_of_the_runs_own_size_are_the_forecast() -> None:
    peaks = [{"rollout": 50.0, "update": 80.0}, {"rollout": 55.0, "update": 90.0}]
    steps = [Step(2, 0, 9.0, {}, peaks[0]), *(Step(4, 0, seconds, {}, peaks[1]) for seconds in (2.0, 3.0, 4.0, 40.0))]
    run = RunSize(prompts=4, rollouts=100, validations=0.0, problems=0, checkpoints=0)
    ahead = forecast(steps, run, [85.0], Costs())
    assert (ahead.measured, ahead.rollout_s, ahead.peak_mib) == (True, 3.0, 90.0)  # 40 s are another program's
    half = 4.302653 / 3**0.5  # Student's t of 2 degrees of freedom, over the root of 3 rollouts
    assert ahead.run_low_s == pytest.approx(max(200.0, 100 * (3.0 - half)))
    assert ahead.run_high_s == pytest.approx(100 * (3.0 + half), rel=1e-5)
    once = forecast(steps[:2], run, [], Costs())
    assert (once.run_s, once.run_low_s, once.run_high_s) == (200.0, 100.0, 400.0)  # measured once: a guess
