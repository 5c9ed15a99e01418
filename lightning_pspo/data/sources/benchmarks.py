"""Published benchmarks, from the hub or from a local copy with the hub's field names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lightning_pspo.data.rows import SUFFIXES, Row, read_rows, text_field
from lightning_pspo.data.sources.base import RowSource, check_file
from lightning_pspo.errors import InputError
from lightning_pspo.grading import last_boxed
from lightning_pspo.types import Problem

_BRACKETED_UNIT = re.compile(r"\s*\([^()]*\)\s*$")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def stated_answer(row: Row, where: str) -> str:
    r"""Return the field ``answer`` of a row, or the last ``\boxed{}`` of its ``solution``, or raise InputError."""
    if "answer" in row:
        return text_field(row, "answer", where)
    answer = last_boxed(text_field(row, "solution", where))
    if answer is None:
        raise InputError(f"{where}: must have the field 'answer', or a \\boxed{{}} answer in 'solution'.")
    return answer


@dataclass(eq=False)
class Benchmark(RowSource):
    """Rows from the hub or from a local file with the hub's field names.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.

    Raises:
        InputError: ``path`` is not a file or has another suffix, or ``revision`` is set beside it.
    """

    path: str | Path | None = None
    _: KW_ONLY
    revision: str | None = None

    hub_id: ClassVar[str]
    hub_config: ClassVar[str | None] = None
    hub_split: ClassVar[str] = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            return
        if self.revision is not None:
            raise InputError(f"`revision` must not be set beside `path`, got {self.revision!r} and {str(self.path)!r}.")
        self.path = check_file(self.path, SUFFIXES)

    @property
    def origin(self) -> str:
        """Where the rows come from."""
        return str(self.path) if self.path else f"{self.hub_id}, split {self._split}"

    @property
    def _split(self) -> str:
        return self.hub_split

    def _id(self, number: int) -> str:
        return f"{type(self).__name__.lower()}-{self._split}-{number}"

    def _rows(self) -> Iterator[tuple[int, Row]]:
        return read_rows(Path(self.path)) if self.path else self._hub_rows()

    def _hub_rows(self) -> Iterator[tuple[int, Row]]:
        import datasets

        try:
            rows = datasets.load_dataset(self.hub_id, self.hub_config, split=self._split, revision=self.revision)
        except Exception as error:  # the hub's libraries raise a dozen unrelated types
            raise InputError(
                f"{self.hub_id} (split {self._split}) cannot be read from the hub: {str(error)[:200]}. Set `path` of "
                f"{type(self).__name__} to a local {', '.join(SUFFIXES)} file with the same fields."
            ) from error
        yield from enumerate(rows, start=1)


@dataclass(eq=False, kw_only=True)
class SplitBenchmark(Benchmark):
    """A benchmark with a training and a test split.

    Args:
        split: The hub's split, and a part of the problems' ids. A local file is read whole, whatever this says.
    """

    split: Literal["train", "test"] = "train"

    @property
    def _split(self) -> str:
        return self.split


@dataclass(eq=False)
class GSM8K(SplitBenchmark):
    """Grade-school word problems (openai/gsm8k): 7,473 to train on, 1,319 to test; answers follow ``####``."""

    hub_id = "openai/gsm8k"
    hub_config = "main"

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        _, marker, answer = text_field(row, "answer", where).rpartition("####")
        if not marker or not answer.strip():
            raise InputError(
                f"{where}: field 'answer' must have the final answer after ####, got {marker + answer!r:.60}."
            )
        return Problem(self._id(number), text_field(row, "question", where), answer.strip())


@dataclass(eq=False)
class MATH(SplitBenchmark):
    r"""Competition problems (nlile/hendrycks-MATH-benchmark: 12,000 to train on, and MATH-500 to test).

    The answer is the field ``answer``, or the last ``\boxed{}`` of ``solution`` where there is no such field.
    """

    hub_id = "nlile/hendrycks-MATH-benchmark"

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        return Problem(self._id(number), text_field(row, "problem", where), stated_answer(row, where))


@dataclass(eq=False, kw_only=True)
class SVAMP(SplitBenchmark):
    """One-step word problems with changed wording (ChilleD/SVAMP): 700 to train on, 300 to test.

    The question is ``question_concat``, or ``Body`` and ``Question`` where that field is missing.
    """

    hub_id = "ChilleD/SVAMP"
    split: Literal["train", "test"] = "test"

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        if "question_concat" in row:
            question = text_field(row, "question_concat", where)
        else:
            question = f"{text_field(row, 'Body', where)} {text_field(row, 'Question', where)}"
        return Problem(self._id(number), question, text_field(row, "Answer", where))


@dataclass(eq=False, kw_only=True)
class ASDiv(Benchmark):
    """Elementary word problems (EleutherAI/asdiv, split validation): 2,305, of which 2,084 have one plain number.

    The question is ``body`` and ``question``; a unit in brackets after the answer is removed. The data's licence is
    CC BY-NC 4.0.

    Args:
        numeric_only: Leave out the rows whose answer is not one integer or decimal, and log how many there are.
    """

    hub_id = "EleutherAI/asdiv"
    hub_split = "validation"
    numeric_only: bool = True

    def _problem(self, row: Row, number: int, where: str) -> Problem | None:
        question = f"{text_field(row, 'body', where)} {text_field(row, 'question', where)}"
        answer = text_field(row, "answer", where)
        bare = _BRACKETED_UNIT.sub("", answer)
        if _PLAIN_NUMBER.fullmatch(bare):
            return Problem(self._id(number), question, bare)
        # "-(1/3)" and "5 (cm); 6 (cm)" end in a bracket that is not a unit of the whole answer.
        return None if self.numeric_only else Problem(self._id(number), question, answer)


@dataclass(eq=False)
class Competition(Benchmark):
    r"""Rows of a question and a short answer, from the hub or from a local file.

    The question is ``problem`` or ``question``. The answer is ``answer``, else the list ``final_answer``, else the last
    ``\boxed{}`` of ``solution``.
    """

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        question = text_field(row, "problem" if "problem" in row else "question", where)
        return Problem(self._id(number), question, self._answer(row, where))

    def _answer(self, row: Row, where: str) -> str:
        if "answer" in row or "final_answer" not in row:
            return stated_answer(row, where)
        answers = row["final_answer"]
        if not isinstance(answers, list) or not answers:
            raise InputError(f"{where}: field 'final_answer' must be a list of answers, got {str(answers)[:40]!r}.")
        return ", ".join(text_field({"final_answer": answer}, "final_answer", where) for answer in answers)


@dataclass(eq=False)
class MATH500(Competition):
    """The 500 problems of MATH's test split that are commonly reported (HuggingFaceH4/MATH-500)."""

    hub_id = "HuggingFaceH4/MATH-500"


@dataclass(eq=False)
class AIME24(Competition):
    """AIME I and II of 2024 (HuggingFaceH4/aime_2024): 30 problems, answers from 0 to 999."""

    hub_id = "HuggingFaceH4/aime_2024"
    hub_split = "train"

    def _answer(self, row: Row, where: str) -> str:
        answer = super()._answer(row, where)
        return str(int(answer)) if answer.isdecimal() else answer  # the contest writes 025


@dataclass(eq=False)
class AMC23(Competition):
    """AMC 12 of 2023, problems with a numeric answer (math-ai/amc23): 40."""

    hub_id = "math-ai/amc23"


@dataclass(eq=False)
class MinervaMath(Competition):
    """Undergraduate science problems of Minerva's OCWCourses (math-ai/minervamath; arXiv 2206.14858): 272."""

    hub_id = "math-ai/minervamath"


@dataclass(eq=False)
class OlympiadBench(Competition):
    """English, text-only, open-ended mathematics of OlympiadBench (math-ai/olympiadbench; arXiv 2402.14008): 674.

    Several answers are joined by commas. The tolerance that a few rows give in ``error`` and the ``unit`` are not used:
    the grader's own rules for decimals and units apply.
    """

    hub_id = "math-ai/olympiadbench"
