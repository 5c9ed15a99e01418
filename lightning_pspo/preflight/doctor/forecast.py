"""Plan the probe's rollouts, and extrapolate time and memory of the run from them. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from lightning_pspo.statistics import mean_interval

FULL_STEPS = 3
"""Number of rollouts of the run's own size that the probe aims at, besides the first."""

_MOST_STEPS = 24


@dataclass(frozen=True)
class Step:
    """One measured rollout with its updates."""

    prompts: int  # number of prompts
    tokens: int  # number of completion tokens
    seconds: float  # from its start to the start of the next
    phases: dict[str, float] = field(default_factory=dict)  # seconds of each phase
    peaks_mib: dict[str, float] = field(default_factory=dict)  # peak memory of each phase
    passed_tokens: int = 0  # tokens of the rows that the update needed, prompts included
    cpu_s: float = 0.0  # processor time over all threads of this process


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """The size of a run, of one rank."""

    prompts: int  # prompts per rollout
    rollouts: int  # number of rollouts
    validations: float  # number of evaluations of all validation sources
    problems: int  # problems in all validation sources
    checkpoints: int  # number of checkpoints written
    minibatches: int = 1  # optimiser steps of a pass over a rollout
    pass_tokens: float = math.inf  # largest number of tokens in a forward and backward pass

    def largest_pass(self, tokens: float) -> float:
        """Return about how many tokens the largest pass has if an update needs ``tokens`` of a whole rollout."""
        return min(self.pass_tokens, tokens / self.minibatches)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of a run outside of rollouts."""

    start: float = 0.0  # before the first rollout
    end: float = 0.0  # after the last one
    checkpoint: float = 0.0  # of one checkpoint
    validated: float = 0.0  # of one validation problem


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The time and memory that a run will need, if completions keep their length."""

    rollout_s: float  # seconds of a rollout with its updates
    phases: dict[str, float]  # seconds of its phases
    run_s: float  # seconds of the run
    run_low_s: float  # lower end of the interval of ``run_s``
    run_high_s: float  # its upper end
    validation_s: float  # seconds of one validation
    peak_mib: float  # peak memory of the process
    from_smaller_s: float | None  # seconds of a rollout, predicted from smaller ones; None without them
    from_smaller_mib: float | None  # the same for memory
    measured: bool  # whether rollouts of the run's own size were measured, whose mean the forecast is


def next_size(done: Sequence[Step], full: int, sample: int, left_s: float) -> int:
    """Return the number of prompts of the probe's next rollout; 0 to end the probe.

    The first rollouts are small; then the run's own size, ``full``, follows as soon as the time allows, until there are
    ``sample`` prompts in all. Two sizes are aimed at, since an extrapolation needs them.

    >>> next_size([], full=64, sample=64, left_s=60.0)
    2
    >>> next_size([Step(2, 100, 0.5)], full=64, sample=64, left_s=60.0)
    64
    >>> next_size([Step(2, 100, 5.0)], full=64, sample=64, left_s=50.0)
    8
    >>> next_size([Step(2, 100, 30.0)], full=64, sample=64, left_s=20.0)
    1
    >>> next_size([Step(2, 100, 30.0), Step(1, 50, 14.0)], full=64, sample=64, left_s=10.0)
    0
    """
    if not done:
        return min(full, 2)
    if len(done) >= _MOST_STEPS:
        return 0
    each = done[-1].seconds / done[-1].prompts
    full_steps = sum(step.prompts == full for step in done[1:])
    enough = full_steps >= FULL_STEPS and sum(step.prompts for step in done) >= sample
    if enough or left_s <= 0.0:
        return 0
    if each * full <= left_s * (0.5 if full_steps == 0 else 1.0):
        return full
    if full_steps:
        return 0
    size = min(full, int(left_s * 0.4 / each))
    if len(done) == 1:
        return max(size, int(each <= left_s))
    return size if size >= max(1, done[-1].prompts // 2) else 0


def line(sizes: Sequence[float], values: Sequence[float], at: float) -> float:
    """Return the value of the least-squares line through points at another size; slope and intercept are at least 0.

    >>> line([1, 2], [3, 5], 10), line([2, 4], [6, 5], 8), line([2], [3], 8)
    (21.0, 5.5, 12.0)
    """
    x, y = fmean(sizes), fmean(values)
    spread = sum((size - x) ** 2 for size in sizes)
    if spread == 0.0:
        return y * at / x
    slope = sum((size - x) * (value - y) for size, value in zip(sizes, values, strict=True)) / spread
    if slope <= 0.0:
        return y
    start = y - slope * x
    if start < 0.0:
        slope = sum(s * v for s, v in zip(sizes, values, strict=True)) / sum(s * s for s in sizes)
        start = 0.0
    return start + slope * at


def extrapolated_mib(steps: Sequence[Step], run: RunSize) -> float:
    """Return the peak memory of a rollout of the run, extrapolated from smaller ones.

    A rollout's memory beyond the constant part grows with its prompts, an update's with its largest pass, which has a
    limit. Lines through the peaks of the phases give the slope.

    >>> small = [Step(n, 0, 1.0, peaks_mib={"rollout": 100.0 + 5 * n}) for n in (2, 4)]
    >>> extrapolated_mib(small, RunSize(prompts=8, rollouts=1, validations=0, problems=0, checkpoints=0))
    140.0
    """
    largest = []
    for name in {name for step in steps for name in step.peaks_mib}:
        known = [step for step in steps if name in step.peaks_mib]
        peaks = [step.peaks_mib[name] for step in known]
        sizes, at = [float(step.prompts) for step in known], float(run.prompts)
        if name in ("update", "old_logprobs"):
            share = sum(step.passed_tokens for step in known) / sum(step.prompts for step in known)
            sizes = [run.largest_pass(step.passed_tokens) for step in known]
            at = run.largest_pass(share * run.prompts)
        if len(set(sizes)) > 1 and at > max(sizes):
            peaks.append(min(line(sizes, peaks, at), _proportional_mib(known, name, sizes, at)))
        largest.append(max(peaks))
    return max(largest, default=0.0)


def _proportional_mib(steps: Sequence[Step], name: str, sizes: Sequence[float], at: float) -> float:
    """Return a phase's peak if all of it beyond the smallest peak of the other phases grew with the size.

    Nothing grows faster: an upper bound for lines through points that are close to each other.
    """
    size, step = max(zip(sizes, steps, strict=True), key=lambda pair: pair[0])
    constant = min((peak for other, peak in step.peaks_mib.items() if other != name), default=-math.inf)
    if size <= 0.0 or constant == -math.inf:
        return math.inf
    return constant + max(0.0, step.peaks_mib[name] - constant) * at / size


def forecast(steps: Sequence[Step], run: RunSize, other_mib: Sequence[float], costs: Costs) -> Forecast:
    """Return the time and memory that the run will need.

    The first of the probe's ``steps`` warms up and counts only if it is alone. The interval of the time is Student's
    for rollouts of the run's own size. From smaller rollouts it has bounds: a rollout is no faster than a smaller one
    and no slower than in proportion to its prompts. ``other_mib`` are peaks at the start, in validations and savings.
    """
    warm = list(steps[1:]) or list(steps)
    own = [step for step in warm if step.prompts == run.prompts]
    small = [step for step in warm if step.prompts != run.prompts] or (list(steps[:1]) if own else [])

    def extrapolated(value: Callable[[Step], float]) -> float:
        return line([float(step.prompts) for step in small], [value(step) for step in small], run.prompts)

    predicts = small and (not own or len({step.prompts for step in small}) > 1)
    from_small = extrapolated(lambda step: step.seconds) if predicts else None
    names = list(dict.fromkeys(name for step in warm for name in step.phases))
    if own:
        usual = _undisturbed([step.seconds for step in own])
        seconds, low, high = fmean(usual), usual[0] / 2, usual[0] * 2
        if len(usual) > 1:
            interval = mean_interval(usual)  # Student's, of positive values
            low, high = max(min(usual), interval.low), interval.high
        phases = {name: fmean(_undisturbed([step.phases.get(name, 0.0) for step in own])) for name in names}
        peak = max(value for step in own for value in step.peaks_mib.values())
    else:
        seconds = from_small or 0.0
        low = min(seconds, max(step.seconds for step in small))
        high = max(seconds, max(step.seconds / step.prompts for step in small) * run.prompts)
        phases = {name: extrapolated(lambda step, name=name: step.phases.get(name, 0.0)) for name in names}  # type: ignore[misc]
        peak = extrapolated_mib(small, run)
    validation = costs.validated * run.problems
    rest = costs.start + costs.end + validation * run.validations + costs.checkpoint * run.checkpoints
    return Forecast(
        rollout_s=seconds,
        phases=phases,
        run_s=seconds * run.rollouts + rest,
        run_low_s=low * run.rollouts + rest,
        run_high_s=high * run.rollouts + rest,
        validation_s=validation,
        peak_mib=max([peak, *other_mib]),
        from_smaller_s=from_small,
        from_smaller_mib=extrapolated_mib(small, run) if predicts else None,
        measured=bool(own),
    )


def _undisturbed(values: Sequence[float]) -> list[float]:
    """Return the values up to twice their median: larger ones were disturbed by another program."""
    middle = median(values)
    return [value for value in values if value <= 2.0 * middle]
