"""Checks of made-up completions of a probe, and of the forecast's certainty."""

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_pspo.grading import Grader, grade
from lightning_pspo.objective.advantages import GroupAdvantage
from lightning_pspo.preflight.doctor import measured, outlook
from lightning_pspo.preflight.doctor.findings import Finding, Severity, ordered
from lightning_pspo.preflight.doctor.forecast import Forecast, Step
from lightning_pspo.preflight.doctor.observed import Observed
from lightning_pspo.report.overview import duration
from lightning_pspo.rewards import Correctness
from lightning_pspo.types import Problem, Sample
from tests.support.models import make_tokenizer

PROBLEM = Problem("p", "What is 20 + 22?", "42")


def subject(group_size: int = 4, **more: Any) -> Any:
    """Return a stand-in with the attributes of a run that the checks read."""
    policy = SimpleNamespace(tokenizer=make_tokenizer(), eos_ids=(2,))
    module = SimpleNamespace(
        group_size=group_size,
        reward=Correctness(),
        grader=Grader(),
        policy=policy,
        advantage=GroupAdvantage(),
        mask_truncated=False,
        minibatches_per_rollout=1,
        limits=SimpleNamespace(tokens=None),
    )
    data = SimpleNamespace(prompts_per_rollout=8, eval_batch_size=8)
    run = SimpleNamespace(module=module, data=data, max_new_tokens=64, prompts=8, rollouts=100, world_size=1, rows={})
    return SimpleNamespace(**vars(run) | {"trainer": {}, "callback": lambda name: None, "chat": None} | more)


def observed(groups: list[str]) -> Observed:
    """Return a probe with a letter for each completion: right, wrong; in capitals if it was cut."""
    letters = [letter for group in groups for letter in group]
    texts = ["#### 42" if letter in "rR" else "#### 7" for letter in letters]
    samples = [
        Sample(PROBLEM, text, grade(text, PROBLEM.answer), letter.isupper(), 64 if letter.isupper() else 20)
        for text, letter in zip(texts, letters, strict=True)
    ]
    rewards = [[float(letter in "rR") for letter in group] for group in groups]
    return Observed(samples=samples, rewards=rewards)


def verdict(findings: Any, check: str) -> Finding:
    return ordered(finding for finding in findings if finding.check == check)[0]


@pytest.mark.parametrize(
    ("groups", "solve_rate", "zero_variance"),
    [
        (["rwww", "wwww", "wwww"], "warning", "warning"),  # 8 %, but anything from 2 to 37 % or so
        (["rwww"] * 20 + ["rrww"] * 20, "ok", "ok"),
        (["wwww"] * 8, "error", "error"),
        (["wwww"] * 3, "warning", "warning"),
        (["rrrr"] * 80, "warning", "error"),
    ],
)
def test_the_signal(groups: list[str], solve_rate: str, zero_variance: str) -> None:
    findings = list(measured.check_signal(subject(), observed(groups)))
    assert verdict(findings, "solve_rate").severity == solve_rate
    assert verdict(findings, "zero_variance").severity == zero_variance
    assert all(finding.change or finding.severity is Severity.OK for finding in findings)


@pytest.mark.parametrize(
    ("groups", "severity"),
    [
        (["RRwr", "Rwww"], "warning"),  # three of four right completions were cut
        (["rrrW", "rwwW"], "ok"),
        (["r" * 11 + "R"] * 3, "ok"),  # a twelfth
        (["WWWW", "rrww"] * 3, "ok"),
    ],
)
def test_text_that_was_cut_should_earn_nothing(groups: list[str], severity: str) -> None:
    size = len(groups[0])
    finding = verdict(measured.check_lengths(subject(size), observed(groups)), "truncated_correct")
    assert finding.severity == severity


def test_a_reward_that_prefers_cut_text() -> None:
    seen = observed(["wwww", "WWWW"] * 2)
    seen.rewards = [[0.0] * 4, [0.5] * 4] * 2
    finding = verdict(measured.check_lengths(subject(), seen), "truncated_correct")
    assert (finding.severity, "0.5" in finding.measured) == ("warning", True)


@pytest.mark.parametrize(
    ("low", "high", "severity"), [(4e3, 25e3, "warning"), (20e3, 25e3, "note"), (100.0, 3000.0, "ok")]
)
def test_a_forecast_is_as_certain_as_its_interval(low: float, high: float, severity: str) -> None:
    """A long run that is known is worth a note; one that may be short or long has to be measured."""
    fixed: dict[str, Any] = {"rollout_s": 1.0, "phases": {}, "validation_s": 0.0, "peak_mib": 1.0, "measured": False}
    smaller = {"from_smaller_s": None, "from_smaller_mib": None}
    ahead = Forecast(run_s=(low + high) / 2, run_low_s=low, run_high_s=high, **fixed, **smaller)
    seen = Observed(steps=[Step(2, 10, 1.0, cpu_s=1.0)])
    finding = verdict(outlook.check_time(subject(), seen, ahead, "cpu"), "time")
    assert finding.severity == severity
    assert f"{duration(low)} to {duration(high)}" in finding.measured
    assert bool(finding.change) == (severity == "warning")
