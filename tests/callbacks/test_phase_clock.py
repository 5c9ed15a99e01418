"""The phases of an iteration: their mean times, and the one that runs."""

from __future__ import annotations

from lightning_pspo.callbacks._phase_clock import PhaseClock, running

from lightning_pspo.training.phases import Phases


def test_the_clock_estimates_from_the_last_iterations() -> None:
    clock = PhaseClock(window=2)
    assert (clock.means(), clock.left(3)) == ({}, {})
    for seconds in (100.0, 1.0, 3.0):
        clock.add({"rollout": seconds, "reward": 0.5, "old_logprobs": 0.25, "update": 1.0, "other": 9.0}, 2 * seconds)
    assert clock.means() == {"rollout": 2.0, "grading": 0.5, "update": 1.25}
    assert clock.left(4) == {"rollout": 8.0, "grading": 2.0, "update": 5.0, "all": 16.0}


def test_the_phase_that_runs_is_known_while_it_runs() -> None:
    begun: list[str] = []
    phases = Phases([begun.append])
    assert running(phases, {}) == running(None, {}) == ""
    for name in ("rollout", "reward", "rollout"):
        with phases.timed(name):
            assert phases.current == name
            assert running(phases, {}) == f"{ {'reward': 'grading'}.get(name, name) }: 0:00:00"
            assert running(phases, {"rollout": 3600.2, "grading": 60.4}).endswith(" left")
    assert running(phases, {}) == ""
    assert begun == ["rollout", "reward", "rollout"]
    assert list(phases) == ["rollout", "reward"]
    phases.current, phases.since = "update", 0.0
    assert running(phases, {"update": 1.0}) == "update: 0:00:00 left", "what takes longer than usual has no time left"
