"""Rewards for a completion's form, whatever its answer: terms for a ``WeightedSum``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.rewards.base import Reward
from lightning_pspo.rewards.text import repetition
from lightning_pspo.types import Sample


class FormatMatch(Reward):
    r"""1 where a line of the completion matches a pattern, else 0; it does not look at the answer's correctness.

    Args:
        pattern: Regular expression, searched for (``re.search``) in one line at a time, without the white space at its
            ends. The default wants a whole line like ``#### 72`` or ``#### -1,250.5``.
        last_line: True to look only at the last line that is not blank, False for any line, None for the whole text
            at once.

    Raises:
        InputError: ``pattern`` is not a valid regular expression.
    """

    def __init__(
        self, *, pattern: str = r"^####\s*-?(?:\d+(?:,\d{2,3})*(?:\.\d*)?|\.\d+)$", last_line: bool | None = True
    ) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise InputError(f"`pattern` must be a valid regular expression, got {pattern!r}: {error}.") from None
        self.last_line = last_line

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return 1 or 0 per sample."""
        return [
            float(self._matches(sample.completion) or self._matches(sample.completion_with_special_tokens))
            for sample in samples
        ]

    def _matches(self, completion: str) -> bool:
        if self.last_line is None:
            return self.pattern.search(completion) is not None
        lines = [line.strip() for line in completion.splitlines()]
        if self.last_line:
            lines = [line for line in lines if line][-1:]
        return any(self.pattern.search(line) for line in lines)


class NoNumber(Reward):
    """1 where the completion has no digit at all, else 0; meant for a negative weight."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return 1 or 0 per sample."""
        return [float(re.search(r"\d", sample.completion) is None) for sample in samples]


class TagCount(Reward):
    """The share of tags that occur exactly once; a completion without any has 0, one with all of them 1.

    Args:
        tags: Texts to count; at least one, all different.
        prefix: Text that the prompt's template already opened the answer with, such as ``<think>``, and that counts as
            the completion's beginning.

    Raises:
        InputError: There is no tag, one is empty, or one occurs twice.

    >>> from lightning_pspo.grading import grade
    >>> from lightning_pspo.types import Problem
    >>> text = "<think>2 + 2</think><answer>4"
    >>> TagCount()([Sample(Problem("p", "2 + 2?", "4"), text, grade(text, "4"), False, 8)])
    [0.75]
    """

    def __init__(
        self, *, tags: Sequence[str] = ("<think>", "</think>", "<answer>", "</answer>"), prefix: str = ""
    ) -> None:
        if not tags or not all(tags) or len(set(tags)) < len(tags):
            raise InputError(f"`tags` must be different texts, at least one and none empty, got {list(tags)}.")
        self.tags, self.prefix = tuple(tags), prefix

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return a number in [0, 1] per sample."""
        texts = (self.prefix + sample.completion_with_special_tokens for sample in samples)
        return [sum(text.count(tag) == 1 for tag in self.tags) / len(self.tags) for text in texts]


class Repetition(Reward):
    """Minus the share of n-grams of words that occurred before in the same completion; 0 where nothing is repeated.

    Words are separated by white space, and their case does not count. In ``WeightedSum`` the weight is the penalty of
    a text that only repeats itself.

    Args:
        words: Words of an n-gram, at least 1. Phrases like "so we have" repeat in sound solutions too: take 3 or more.

    Raises:
        InputError: ``words`` is below 1.

    >>> from lightning_pspo.grading import grade
    >>> from lightning_pspo.types import Problem
    >>> text = "so it is so it is 4"  # 4 different ones of 5: "so it is" occurs twice
    >>> Repetition(words=3)([Sample(Problem("p", "2 + 2?", "4"), text, grade(text, "4"), False, 8)])
    [-0.2]
    """

    def __init__(self, *, words: int = 3) -> None:
        check_at_least("words", words, 1)
        self.words = words

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return a number in (-1, 0] per sample."""
        return [-repetition(sample.completion.lower(), self.words) for sample in samples]
