"""Rewards for a completion's length: terms for a ``WeightedSum``."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.rewards.base import Reward, groups
from lightning_pspo.types import Sample


class SoftOverlong(Reward):
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): a term for ``WeightedSum``, with weight 1 there.

    0 up to ``max_tokens - buffer`` tokens, then a straight line down to -1 at ``max_tokens``, and -1 beyond. A
    completion that the token limit cut has as many tokens as the limit: take ``max_tokens`` at or below it. The paper's
    are 20,480 and a buffer of 4,096.

    Args:
        max_tokens: Length from which the whole penalty applies, at least 1.
        buffer: Tokens before that over which it grows, in [1, ``max_tokens``].

    Raises:
        InputError: A number is out of range.
    """

    def __init__(self, *, max_tokens: int, buffer: int) -> None:
        check_at_least("max_tokens", max_tokens, 1)
        if not 1 <= buffer <= max_tokens:
            raise InputError(f"`buffer` must lie in [1, `max_tokens`] = [1, {max_tokens}], got {buffer}.")
        self.max_tokens = max_tokens
        self.buffer = buffer
        self.length_range = (max_tokens - buffer, max_tokens)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return a number in [-1, 0] per sample."""
        free = self.max_tokens - self.buffer
        return [-min(max(sample.length_tokens - free, 0) / self.buffer, 1.0) for sample in samples]


class TargetLength(Reward):
    """Minus the distance from a wanted length: 0 at ``tokens``, -1 at twice that and beyond.

    With a weight of ``tokens`` times the paper's alpha this is L1's LCPO-Exact (arXiv 2503.04697) up to that bound.

    Args:
        tokens: Wanted number of tokens, the end-of-sequence token included; at least 1.
        tolerance: Tokens more or less that cost nothing, at least 0.

    Raises:
        InputError: A number is out of range.

    >>> from lightning_pspo.grading import grade
    >>> from lightning_pspo.types import Problem
    >>> problem, right = Problem("p", "2 + 2?", "4"), grade("4", "4")
    >>> TargetLength(tokens=100)([Sample(problem, "4", right, False, tokens) for tokens in (50, 100, 110, 900)])
    [-0.5, 0.0, -0.1, -1.0]
    """

    def __init__(self, *, tokens: int, tolerance: int = 0) -> None:
        check_at_least("tokens", tokens, 1)
        check_at_least("tolerance", tolerance, 0)
        self.tokens, self.tolerance = tokens, tolerance
        self.length_range = (tokens, tokens)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return a number in [-1, 0] per sample."""
        distances = (max(abs(sample.length_tokens - self.tokens) - self.tolerance, 0) for sample in samples)
        return [max(-distance / self.tokens, -1.0) for distance in distances]


class GroupLength(Reward):
    """The length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3): short is better, within each group.

    0.5 for the group's shortest completion down to -0.5 for its longest, by a straight line; of those that are not
    correct, only what is below 0 counts. All are 0 in a group of one length. The paper warms up without it.

    >>> from lightning_pspo.grading import grade
    >>> from lightning_pspo.types import Problem
    >>> problem, right, wrong = Problem("p", "2 + 2?", "4"), grade("4", "4"), grade("5", "4")
    >>> GroupLength()([Sample(problem, "", mark, False, n) for mark, n in ((right, 10), (right, 20), (wrong, 5))])
    [0.16666666666666669, -0.5, 0.0]
    """

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return a number in [-0.5, 0.5] per sample."""
        return [value for group in groups(samples) for value in self._of_group(group)]

    def _of_group(self, group: Sequence[Sample]) -> list[float]:
        lengths = [sample.length_tokens for sample in group]
        shortest, spread = min(lengths), max(lengths) - min(lengths)
        if spread == 0:
            return [0.0] * len(group)
        values = [0.5 - (length - shortest) / spread for length in lengths]
        return [value if sample.grade.correct else min(0.0, value) for value, sample in zip(values, group, strict=True)]
