"""Find reference answers that no completion could match, before any model is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.grading import Attempt, Grader, extract
from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.numbers import read_number
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)

_SENTENCE = re.compile(  # two words, "It's 5", "Step 2: 5"
    r"(?=.*(?<!\w)[0-9][0-9.,]*(?!\w))(?!.*[\\=^{(\[])(?:(?:.*\b[A-Za-z]{2,}\b){2}"
    r"|.*[A-Za-z]['’][a-z]+ |[A-Za-z][^:,;]*:\s[^:,;]*\Z)",
    re.DOTALL,
)
_SEVERAL = re.compile(r",? and |, ")
_MORE_THAN_NUMBERS = re.compile(  # a time, a date, or the description of a set
    r"[0-9]:[0-9]|[0-9] ?[ap]m\b|\b(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sep|Oct|Nov|Dec)[a-z]*\b"
    r"|\b(?i:all|any|every|each|except|set|such that|divisible|(?:greater|less|larger|smaller) than)\b"
)


def check_references(origin: str, problems: Collection[Problem]) -> list[Problem]:
    r"""Find the reference answers that no completion can match.

    Each is graded as an answer to itself, behind ``####`` and in ``\boxed{}``. Of a sentence with a number in it, such
    as "So the answer is 5.", the number alone must be right, too: that is what a completion will say. Nearly all are
    decided by the grader's quick rules; worker processes start only for the others.

    Returns:
        The problems on which no completion can be graded correct; how many, and the first, is logged.
    """
    with Grader() as grader:
        failing = _failing(grader, list(problems), f"{HASH_MARKER} {{}}")
        failing = _failing(grader, failing, f"{BOXED_MARKER}{{{{{{}}}}}}") if failing else []
        sentences = [row for row in problems if row.scorer is None and _is_sentence(clean(row.answer))]
        failing += [problem for problem in _failing(grader, sentences, None) if problem not in failing]
    if failing:
        _log.warning(
            "%s: %d of %d reference answers cannot be matched by any completion; the first is %r of %r. A "
            "reference must be the final answer alone.",
            origin,
            len(failing),
            len(problems),
            failing[0].answer[:60],
            failing[0].id,
        )
    return failing


def _is_sentence(answer: str) -> bool:
    """Whether an answer has a number among words, and is not one or several numbers with units."""
    is_prose = _SENTENCE.match(answer) and not _MORE_THAN_NUMBERS.search(answer)
    return bool(is_prose) and not (read_number(answer) or all(map(read_number, _SEVERAL.split(answer))))


def _failing(grader: Grader, problems: Sequence[Problem], form: str | None) -> list[Problem]:
    """Return the problems whose reference is wrong in a form; with None, the number in it alone."""
    texts = [form.format(row.answer) if form else f"{HASH_MARKER} {extract(row.answer)[0]}" for row in problems]
    grades = grader.grade(
        [Attempt(text, row.answer, row.question, scorer=row.scorer) for row, text in zip(problems, texts, strict=True)]
    )
    return [problem for problem, grade in zip(problems, grades, strict=True) if not grade.correct]
