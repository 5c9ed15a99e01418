"""Reference answers that no completion could match, found before any model is loaded."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.grading import Grader
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)

_KINDS = (
    ("several values", re.compile(r".*(?:;|\bor\b|\band\b|,\s).*", re.DOTALL)),
    ("equation", re.compile(r".*[^<>!]=.*", re.DOTALL)),
    ("ratio or time", re.compile(r"[\d\s.]+(?::[\d\s.]+)+(?:\s*[ap]\.?m\.?)?", re.IGNORECASE)),
    ("fraction", re.compile(r"[-−(]*\s*\d+\s*/\s*\d+\)?|-?\\[dt]?frac\{\d+\}\{\d+\}")),
    ("number", re.compile(r"[-−]?[\d.,]+")),
    ("number with a unit", re.compile(r"[-−]?\$?[\d.,]+\s*(?:\\?%|[^\W\d]|\\|\().*", re.DOTALL)),
    ("expression", re.compile(r".*[\\^_+*/{}].*|[a-zA-Z]", re.DOTALL)),
    ("words", re.compile(r"[^\W\d].*", re.DOTALL)),
)


def kind_of(answer: str) -> str:
    r"""Return what a reference answer looks like, for a report.

    >>> [kind_of(answer) for answer in ("12", "3 (apples)", "5:6", "They are equal", r"\frac{1}{2}", "2; 3", "x = 1")]
    ['number', 'number with a unit', 'ratio or time', 'words', 'fraction', 'several values', 'equation']
    """
    return next((name for name, pattern in _KINDS if pattern.fullmatch(answer.strip())), "other")


def check_references(origin: str, problems: Collection[Problem]) -> list[Problem]:
    r"""Hold each reference answer against itself, once behind ``####`` and once in ``\boxed{}``.

    Nearly all are decided by the grader's quick rules; worker processes start only for the others.

    Args:
        origin: Where the problems come from, for the message.
        problems: At least one.

    Returns:
        The problems whose reference verifies neither way: no completion can be graded correct on them. How many of each
        kind there are is logged.
    """
    with Grader() as grader:
        failing = _failing(grader, list(problems), f"{HASH_MARKER} {{}}")
        failing = _failing(grader, failing, f"{BOXED_MARKER}{{{{{{}}}}}}") if failing else []
    if failing:
        kinds = Counter(kind_of(problem.answer) for problem in failing)
        _log.warning(
            "%s: %d of %d reference answers do not verify against themselves (%s); the first is %r of %r. A reference "
            "must be the final answer alone.",
            origin,
            len(failing),
            len(problems),
            ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common()),
            failing[0].answer[:60],
            failing[0].id,
        )
    return failing


def _failing(grader: Grader, problems: Sequence[Problem], form: str) -> list[Problem]:
    grades = grader.grade([(form.format(problem.answer), problem.answer) for problem in problems])
    return [problem for problem, grade in zip(problems, grades, strict=True) if not grade.correct]
