"""How large the probe's rollouts are: small ones first, the run's own size as soon as the time allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One measured rollout with its updates.

    Attributes:
        prompts: Prompts in it.
        tokens: Completion tokens.
        seconds: From its beginning to the beginning of the next.
        phases: Seconds of each phase.
        peaks_mib: Largest memory of each phase.
        passed_tokens: Tokens of the rows that the update needed, prompts included.
        cpu_s: Processor time, over all threads of this process.
    """

    prompts: int
    tokens: int
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    peaks_mib: dict[str, float] = field(default_factory=dict)
    passed_tokens: int = 0
    cpu_s: float = 0.0


WHOLE_STEPS = 3
"""Rollouts of the run's own size that are wanted, besides the first."""

_MOST_STEPS = 24


def next_size(done: Sequence[Step], whole: int, sample: int, left_s: float) -> int:
    """Return the prompts of the next rollout; 0 when the probe is over.

    Args:
        done: What was measured so far.
        whole: Prompts of a rollout of the run, at least 1.
        sample: Prompts that the sample should have.
        left_s: Seconds that are left.

    >>> next_size([], whole=64, sample=64, left_s=60.0)
    2
    >>> next_size([Step(2, 100, 0.5)], whole=64, sample=64, left_s=60.0)
    64
    >>> next_size([Step(2, 100, 5.0)], whole=64, sample=64, left_s=50.0)
    8
    >>> next_size([Step(2, 100, 30.0), Step(1, 50, 14.0)], whole=64, sample=64, left_s=10.0)
    0
    """
    if not done:
        return min(whole, 2)
    if len(done) >= _MOST_STEPS:
        return 0
    each = done[-1].seconds / done[-1].prompts
    wholes = sum(step.prompts == whole for step in done[1:])
    enough = wholes >= WHOLE_STEPS and sum(step.prompts for step in done) >= sample
    if enough or (len(done) > 1 and left_s <= 0.0):
        return 0
    if each * whole <= left_s * (0.5 if wholes == 0 else 1.0):
        return whole
    if wholes:
        return 0
    size = min(whole, int(left_s * 0.4 / each))
    if len(done) == 1:
        return max(1, size)  # two sizes are the least from which a third can be told
    return size if size >= max(1, done[-1].prompts // 2) else 0
