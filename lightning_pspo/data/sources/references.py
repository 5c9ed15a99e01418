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

_ABSENT = re.compile(  # what people, spreadsheets and programs write where there is no answer
    r"|\\text|\?+|n[/.]a|t\.?b\.?[ad]|todo|to be (?:determined|added|done)|<answer></answer>|\[object object\]"
    r"|\(?(?:see|cf\.?|refer to) (?:the )?(?:above|below|solution|explanation|proof|text|figure|diagram|image)\)?"
    r"|(?:answer )?not (?:available|provided|applicable|found)|#(?:(?:div/0|ref|value|num|null)!|name\?)"
    r"|.*\\boxed\s*\{\s*\}[\s.$]*|.*####",
    re.IGNORECASE | re.DOTALL,
)
_MAY_BE_ABSENT = re.compile(r"None|NaN|nan|null|NULL|[Uu]nknown|UNKNOWN|-")
_SHORT_ANSWER = re.compile(r"\$?\\?\{\s*\\?\}\$?|.*[\u2190-\U0001faff].*", re.DOTALL)  # the empty set, an emoji


def check_references(origin: str, problems: Collection[Problem]) -> list[Problem]:
    r"""Find the reference answers that no completion can match.

    Each is graded as an answer to itself, behind ``####`` and in ``\boxed{}``. Of a sentence with a number in it, such
    as "So the answer is 5.", the number alone must be right, too: that is what a completion will say. And it must not
    stand for a missing answer, as "N/A" or an empty box does. Nearly all are decided by the grader's quick rules;
    worker processes start only for the others.

    Returns:
        The problems on which no completion can be graded correct; how many, and the first, is logged.
    """
    with Grader() as grader:
        failing = _failing(grader, list(problems), f"{HASH_MARKER} {{}}")
        failing = _failing(grader, failing, f"{BOXED_MARKER}{{{{{{}}}}}}") if failing else []
        sentences = [row for row in problems if row.scorer is None and _is_sentence(clean(row.answer))]
        failing += [problem for problem in _failing(grader, sentences, None) if problem not in failing]
    failing += [problem for problem in _absent(problems) if problem not in failing]
    if failing:
        _log.warning(
            "%s: %d of %d reference answers cannot be matched by any completion, or stand for none; the first "
            "is %r of %r. A reference must be the final answer alone: correct these rows, or leave them out by "
            "`filter`.",
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


def _absent(problems: Collection[Problem]) -> list[Problem]:
    """Return the problems whose reference stands for a missing answer; "None" does among numbers, unless asked for."""

    def words(text: str) -> set[str]:
        return set(re.findall("[a-z]+", text.lower()))

    absent, doubtful, numbers, others = list[Problem](), list[Problem](), 0, 0
    for problem in (problem for problem in problems if problem.scorer is None):
        answer = problem.answer
        is_asked_for = bool(words(answer)) and words(answer) <= words(problem.question)
        if _MAY_BE_ABSENT.fullmatch(answer.strip(" .")):
            doubtful += [] if is_asked_for else [problem]
        elif any(map(_ABSENT.fullmatch, (answer, clean(answer)))) and not _SHORT_ANSWER.fullmatch(answer):
            absent += [] if is_asked_for else [problem]
        elif any(map(str.isdigit, answer)):
            numbers += 1
        else:
            others += 1
    return absent + (doubtful if numbers >= others else [])


def _failing(grader: Grader, problems: Sequence[Problem], form: str | None) -> list[Problem]:
    """Return the problems whose reference is wrong in a form; with None, the number in it alone."""
    texts = [form.format(row.answer) if form else f"{HASH_MARKER} {extract(row.answer)[0]}" for row in problems]
    grades = grader.grade(
        [Attempt(text, row.answer, row.question, scorer=row.scorer) for row, text in zip(problems, texts, strict=True)]
    )
    return [problem for problem, grade in zip(problems, grades, strict=True) if not grade.correct]
