"""From a probe to a run: seconds and memory. Pure arithmetic on what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from lightning_pspo.preflight.doctor.planning import Step


@dataclass(frozen=True)
class Length:
    """How much a run is of what was measured.

    Attributes:
        prompts: Of a rollout, of one rank.
        rollouts: Of the run.
        validations: Whole evaluations of all validation sources.
        problems: Problems in all validation sources, of one rank.
        checkpoints: That are written.
        minibatches: Optimiser steps of a pass over a rollout.
        pass_tokens: Most tokens of a forward and backward pass.
    """

    prompts: int
    rollouts: int
    validations: float
    problems: int
    checkpoints: int
    minibatches: int = 1
    pass_tokens: float = math.inf

    def largest_pass(self, tokens: float) -> float:
        """Return the tokens of the largest pass, about, when an update needs so many of a whole rollout."""
        return min(self.pass_tokens, tokens / self.minibatches)


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        rollout_s: Seconds of a rollout with its updates.
        phases: Seconds of its phases.
        run_s: Seconds of the whole run.
        validation_s: Seconds of one validation.
        peak_mib: Largest memory of the process, with completions as long as those of the probe.
        from_smaller_s: Seconds of a rollout as the smaller rollouts of the probe foretell it; None without them.
        from_smaller_mib: The same for memory.
        measured: True if rollouts of the run's own size were measured, and the forecast is their mean.
    """

    rollout_s: float
    phases: Mapping[str, float]
    run_s: float
    validation_s: float
    peak_mib: float
    from_smaller_s: float | None
    from_smaller_mib: float | None
    measured: bool

    def as_values(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self)) | {"phases": dict(self.phases)}


def line(sizes: Sequence[float], values: Sequence[float], at: float) -> float:
    """Return the least-squares line through points, at another size; neither its slope nor its start is below 0.

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


def grown(steps: Sequence[Step], length: Length) -> float:
    """Return the memory that a rollout of the run takes at most, told from smaller ones.

    What a rollout needs beyond what is always there grows with its prompts; what an update needs, with its largest
    pass, which has a limit. Lines through the phases' peaks say how fast.

    >>> small = [Step(n, 0, 1.0, peaks_mib={"rollout": 100.0 + 5 * n}) for n in (2, 4)]
    >>> grown(small, Length(prompts=8, rollouts=1, validations=0, problems=0, checkpoints=0))
    140.0
    """
    names = {name for step in steps for name in step.peaks_mib}
    found = []
    for name in names:
        known = [step for step in steps if name in step.peaks_mib]
        peaks = [step.peaks_mib[name] for step in known]
        sizes, at = [float(step.prompts) for step in known], float(length.prompts)
        if name in ("update", "old_logprobs"):
            share = sum(step.passed_tokens for step in known) / sum(step.prompts for step in known)
            sizes = [length.largest_pass(step.passed_tokens) for step in known]
            at = length.largest_pass(share * length.prompts)
        if len(set(sizes)) == 1 or at <= max(sizes):
            found.append(max(peaks))
        else:
            found.append(max(min(line(sizes, peaks, at), _in_proportion(known, name, sizes, at)), *peaks))
    return max(found, default=0.0)


def _in_proportion(steps: Sequence[Step], name: str, sizes: Sequence[float], at: float) -> float:
    """Return a phase's peak if all that it takes beyond the least of the other phases grew with the size.

    Nothing grows faster: a bound for lines through points that are close to each other.
    """
    size, step = max(zip(sizes, steps, strict=True), key=lambda pair: pair[0])
    rest = min((peak for other, peak in step.peaks_mib.items() if other != name), default=-math.inf)
    if size <= 0.0 or rest == -math.inf:
        return math.inf
    return rest + max(0.0, step.peaks_mib[name] - rest) * at / size


def forecast(
    steps: Sequence[Step], length: Length, others_mib: Sequence[float], costs: Mapping[str, float]
) -> Forecast:
    """Return what the run will take.

    Args:
        steps: The probe's rollouts, in order; the first one warms up and counts only if there is no other.
        length: Of the run.
        others_mib: Largest memory outside of rollouts and updates: start, validation, saving.
        costs: Seconds of ``start``, ``end``, one ``checkpoint`` and one ``validated`` problem.
    """
    warm = list(steps[1:]) or list(steps)
    own = [step for step in warm if step.prompts == length.prompts]
    small = [step for step in warm if step.prompts != length.prompts] or (list(steps[:1]) if own else [])
    sizes = {step.prompts for step in small}

    def told(value: Any, some: Sequence[Step]) -> float:
        return line([float(step.prompts) for step in some], [value(step) for step in some], length.prompts)

    from_small = told(lambda step: step.seconds, small) if small and (not own or len(sizes) > 1) else None
    small_mib = grown(small, length) if from_small is not None else None
    names = list(dict.fromkeys(name for step in warm for name in step.phases))
    if own:
        seconds = _typical([step.seconds for step in own])
        phases = {name: _typical([step.phases.get(name, 0.0) for step in own]) for name in names}
        peak = max(value for step in own for value in step.peaks_mib.values())
    else:
        seconds = from_small or 0.0
        phases = {name: told(lambda step, name=name: step.phases.get(name, 0.0), small) for name in names}
        peak = grown(small, length)
    validation = costs["validated"] * length.problems
    whole = seconds * length.rollouts + validation * length.validations + costs["checkpoint"] * length.checkpoints
    return Forecast(
        rollout_s=seconds,
        phases=phases,
        run_s=whole + costs["start"] + costs["end"],
        validation_s=validation,
        peak_mib=max([peak, *others_mib]),
        from_smaller_s=from_small,
        from_smaller_mib=small_mib,
        measured=bool(own),
    )


def _typical(values: Sequence[float]) -> float:
    """Return the mean, of a few; of three and more without what another program on the machine has disturbed."""
    middle = median(values)
    return fmean([value for value in values if value <= 2.0 * middle])


def clock(seconds: float) -> str:
    """Return a time as a person says it.

    >>> clock(4.26), clock(75), clock(7300), clock(200000)
    ('4.3 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
