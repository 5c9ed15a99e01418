"""Grade one completion by a reference answer or a task's own scorer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from lightning_pspo.grading.copies import is_copied_term, refusal, without_question
from lightning_pspo.grading.equivalence import equivalent, quick
from lightning_pspo.grading.extraction import Mode, extract
from lightning_pspo.grading.numbers import MAX_ANSWER_CHARS
from lightning_pspo.grading.qualifiers import in_terms_of, without_scale

CutOff = Literal["marked", "any", "none"]
"""Which answers count in a completion that the token limit cut off: marked ones, all that a rule finds, or none."""

Scorer = Callable[[str], bool | None]
"""A task's own judgement of an answer; None where equality with the reference decides."""

_TAGGED = re.compile(rf"<answer>\s*([^<]{{1,{MAX_ANSWER_CHARS}}}?)\s*</answer>")


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


def grade(
    completion: str,
    answer: str,
    mode: Mode = "lenient",
    *,
    question: str = "",
    truncated: bool = False,
    cut_off: CutOff = "marked",
    scorer: Scorer | None = None,
) -> Grade:
    r"""Judge a completion against the reference answer.

    Args:
        completion: The model's text; any text, also hostile or cut off.
        answer: The reference answer, without its derivation.
        mode: Which rules may find the answer: see `extraction.extract`.
        question: The question; a copy of it, or of a part of it, is not an answer: see `copies.refusal`.
        truncated: Whether the token limit ended the completion.
        cut_off: Which answers count in such a completion: ``marked`` ones (``####``, a box, "the answer is"), ``any``,
            or ``none``.
        scorer: A task's own judgement of the extracted answer; where it gives None, the reference decides.

    >>> grade("2 + 2 = 4\n#### 4", "4.0")
    Grade(verdict=<Verdict.CORRECT: 'correct'>, extracted='4', rule='hash')
    >>> grade("Then we add 4", "4", truncated=True)
    Grade(verdict=<Verdict.NO_ANSWER: 'no_answer'>, extracted=None, rule='truncated')
    """
    attempt = Attempt(completion, answer, question, truncated, scorer)
    read = read_answer(attempt, mode, cut_off)
    return read if isinstance(read, Grade) else settle(attempt, *read, equivalent(read[0], answer))


def read_answer(attempt: Attempt, mode: Mode, cut_off: CutOff) -> tuple[str, str] | Grade:
    """Return the answer in a completion and the rule that found it, or the grade where that needs no comparison."""
    text = without_question(attempt.completion, attempt.question)
    if attempt.truncated and cut_off != "any":
        extracted, rule = extract(text, mode, cut=True) if cut_off == "marked" else (None, "none")
        rule = rule if extracted is not None or extract(text, mode)[0] is None else "truncated"
    else:
        extracted, rule = extract(text, mode)
    if attempt.scorer is not None and (tagged := _TAGGED.findall(text)):  # a task's own scorer expects it whole
        extracted, rule = tagged[-1], "stated"
    if extracted is None:
        if rule == "none" and text != attempt.completion and (copied := extract(attempt.completion, mode)[0]):
            return Grade(Verdict.WRONG, copied, "copied")
        return Grade(Verdict.NO_ANSWER, None, rule)
    if rule == "last_number" and attempt.question and is_copied_term(text, extracted, attempt.question):
        return Grade(Verdict.WRONG, extracted, "copied")
    if attempt.scorer is not None and len(extracted) <= MAX_ANSWER_CHARS:
        right = attempt.scorer(extracted)
        if right is not None:
            return Grade(Verdict.CORRECT if right else Verdict.WRONG, extracted, rule)
    bare = without_scale(attempt.question, extracted)
    if bare and quick(bare, attempt.answer):
        return bare, rule
    return in_terms_of(attempt.question, extracted), rule


def settle(attempt: Attempt, extracted: str, rule: str, same: bool) -> Grade:
    """Return the grade of an answer that is, or is not, equivalent to the reference."""
    if same and attempt.question and (reason := refusal(extracted, attempt.answer, attempt.question)):
        return Grade(Verdict.WRONG, extracted, reason)
    return Grade(Verdict.CORRECT if same else Verdict.WRONG, extracted, rule)
