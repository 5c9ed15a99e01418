"""Extract answers and decide whether they are right. Needs no torch."""

from lightning_pspo.grading.equivalence import equivalent, quick
from lightning_pspo.grading.extraction import Mode, extract, last_boxed
from lightning_pspo.grading.grader import Attempt, CutOff, Grade, Grader, Scorer, grade
from lightning_pspo.grading.numbers import parse_number
from lightning_pspo.grading.processes import Verdict

__all__ = [
    "Attempt",
    "CutOff",
    "Grade",
    "Grader",
    "Mode",
    "Scorer",
    "Verdict",
    "equivalent",
    "extract",
    "grade",
    "last_boxed",
    "parse_number",
    "quick",
]
