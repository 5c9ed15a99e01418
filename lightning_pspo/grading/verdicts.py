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
    """A completion with all that its grade depends on."""

    completion: str  # any text, also hostile
    answer: str  # without its derivation
    question: str = ""  # empty if it is unknown, and then a copy of it is not recognised
    truncated: bool = False  # whether the token limit ended the completion
    scorer: Scorer | None = None  # None compares with the answer


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

    ``rule`` is the extraction rule that found the answer (see `extraction.extract`), or the one that refused it:
    ``copied`` and ``unevaluated`` (see `copies.refusal`), ``truncated`` (only an unmarked answer, cut off).
    """

    verdict: Verdict
    extracted: str | None
    rule: str

    @property
    def correct(self) -> bool:
        """True for the verdict ``correct``."""
        return self.verdict is Verdict.CORRECT
