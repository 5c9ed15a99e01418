"""The reward for a right answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from lightning_pspo.errors import InputError
from lightning_pspo.grading import Verdict
from lightning_pspo.rewards.base import Reward, check_finite, groups, row_name
from lightning_pspo.types import Sample

Undecided = Literal["no_answer", "wrong", "neutral", "stop"]


class Correctness(Reward):
    """A value for each verdict of the verifier. The default: only a right answer earns more than a wrong one.

    A term that also rewards wrong answers (a format bonus, a length term) becomes a full-size advantage in a group
    without a right answer, because group-relative advantages are scaled by the group's own spread.

    Args:
        correct: Value of a correct answer.
        wrong: Value of a wrong answer.
        no_answer: Value of a completion in which no answer was found.
        undecided: Treatment of the verdicts ``error`` and ``timeout``, which say nothing about the answer:
            ``no_answer`` and ``wrong`` give those verdicts' value, so that text which defeats the verifier earns
            nothing; ``neutral`` gives the mean of the group's other completions (``wrong``'s value if there are none),
            which is an advantage of zero; ``stop`` ends the run and names the row.

    Raises:
        InputError: A value is not finite, or ``undecided`` is unknown; when called, for an undecided row under
            ``stop``.

    >>> from lightning_pspo.grading import Grade
    >>> from lightning_pspo.types import Problem
    >>> grades = [Grade(Verdict(name), "4", "hash") for name in ("correct", "correct", "wrong", "timeout")]
    >>> group = [Sample(Problem("p", "2 + 2?", "4"), "#### 4", grade, False, 5) for grade in grades]
    >>> Correctness()(group), Correctness(wrong=-1.0, undecided="neutral")(group)
    ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, -1.0, 0.3333333333333333])
    """

    def __init__(
        self, *, correct: float = 1.0, wrong: float = 0.0, no_answer: float = 0.0, undecided: Undecided = "no_answer"
    ) -> None:
        self.values = {Verdict.CORRECT: correct, Verdict.WRONG: wrong, Verdict.NO_ANSWER: no_answer}
        for verdict, value in self.values.items():
            check_finite(f"{verdict}", value)
        if undecided not in get_args(Undecided):
            raise InputError(f"`undecided` must be one of {', '.join(get_args(Undecided))}, got {undecided!r}.")
        self.undecided = undecided

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the verdict's value per sample."""
        if self.undecided == "stop":
            self._refuse_undecided(samples)
        return [value for group in groups(samples) for value in self._of_group(group)]

    def _of_group(self, group: Sequence[Sample]) -> list[float]:
        verdicts = [sample.grade.verdict for sample in group]
        if self.undecided == "neutral":
            decided = [self.values[verdict] for verdict in verdicts if verdict in self.values]
            otherwise = _mean(decided) if decided else self.values[Verdict.WRONG]
        else:
            otherwise = self.values[Verdict.WRONG if self.undecided == "wrong" else Verdict.NO_ANSWER]
        return [self.values.get(verdict, otherwise) for verdict in verdicts]

    def _refuse_undecided(self, samples: Sequence[Sample]) -> None:
        for row, sample in enumerate(samples):
            if sample.grade.verdict not in self.values:
                raise InputError(
                    f"the verifier must decide on every row with `undecided`=stop, got {sample.grade.verdict} in "
                    f"{row_name(row, sample)}."
                )


def _mean(values: Sequence[float]) -> float:
    """Return the mean, which rounding must not move out of equal values: their group is to stay without a spread."""
    return min(max(math.fsum(values) / len(values), min(values)), max(values))
