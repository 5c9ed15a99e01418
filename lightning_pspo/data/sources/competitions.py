"""Competition problems: small and hard, for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightning_pspo.data.sources.benchmarks import Benchmark, stated_answer
from lightning_pspo.data.sources.rows import Row, text_field
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem


class Competition(Benchmark):
    r"""Rows of a question and a short answer, from the hub or from a local file.

    The question is ``problem`` or ``question``. The answer is ``answer``, else the list ``final_answer``, else the last
    ``\boxed{}`` of ``solution``.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_split: ClassVar[str] = "test"

    def __init__(self, path: str | Path | None = None, revision: str | None = None, limit: int | None = None) -> None:
        super().__init__(path, self.hub_split, revision, limit)

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        question = text_field(row, "problem" if "problem" in row else "question", where)
        return Problem(self._id(number), question, self._answer(row, where))

    def _answer(self, row: Row, where: str) -> str:
        if "answer" not in row and "final_answer" in row:
            answers = row["final_answer"]
            if not isinstance(answers, list) or not answers:
                raise InputError(f"{where}: field 'final_answer' must be a list of answers, got {str(answers)[:40]!r}.")
            return ", ".join(text_field({"final_answer": answer}, "final_answer", where) for answer in answers)
        return stated_answer(row, where)


class AIME24(Competition):
    """AIME I and II of 2024 (HuggingFaceH4/aime_2024): 30 problems, answers from 0 to 999.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "HuggingFaceH4/aime_2024"
    hub_split = "train"

    def _answer(self, row: Row, where: str) -> str:
        answer = super()._answer(row, where)
        return str(int(answer)) if answer.isdecimal() else answer  # the contest writes 025


class AMC23(Competition):
    """AMC 12 of 2023, problems with a numeric answer (math-ai/amc23): 40.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "math-ai/amc23"


class MinervaMath(Competition):
    """Undergraduate science problems of Minerva's OCWCourses (math-ai/minervamath; arXiv 2206.14858): 272.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "math-ai/minervamath"


class OlympiadBench(Competition):
    """English, text-only, open-ended mathematics of OlympiadBench (math-ai/olympiadbench; arXiv 2402.14008): 674.

    Several answers are joined by commas. The tolerance that a few rows give in ``error`` and the ``unit`` are not used:
    the grader's own rules for decimals and units apply.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "math-ai/olympiadbench"
