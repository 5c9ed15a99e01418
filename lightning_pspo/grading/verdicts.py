"""Completions to grade, and how they were judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

Mode = Literal["lenient", "strict"]
"""Which rules may find the answer: see `extraction.extract`."""

CutOff = Literal["marked", "any", "none"]
"""Which answers count in a completion that the token limit cut off: marked ones, all that a rule finds, or none."""

Scorer = Callable[[str], bool | None]
"""A task's own judgement of an answer; None where equality with the reference decides."""


class Attempt(NamedTuple):
    """A completion with all that its grade depends on.

    Attributes:
        completion: The model's text; any text, also hostile.
        answer: The reference answer, without its derivation.
        question: The question; empty if it is unknown, and then a copy of it is not recognised.
        truncated: Whether the token limit ended the completion.
        scorer: The task's own judgement; None compares with ``answer``.
    """

    completion: str
    answer: str
    question: str = ""
    truncated: bool = False
    scorer: Scorer | None = None


class Verdict(StrEnum):
    """How a completion was judged."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its reason.

    Attributes:
        verdict: How the completion was judged; only ``correct`` and ``wrong`` say something about the answer.
        extracted: The answer as read from the completion; None without one.
        rule: Name of the extraction rule that found it (see `extraction.extract`), or of the one that refused it:
            ``copied`` and ``unevaluated`` (see `copies.refusal`), ``truncated`` (only an unmarked answer, cut off).
    """

    verdict: Verdict
    extracted: str | None
    rule: str

    @property
    def correct(self) -> bool:
        """True for the verdict ``correct``."""
        return self.verdict is Verdict.CORRECT
