"""Published benchmarks, from the hub or from a local copy with the hub's field names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from lightning_pspo.data.columns import Columns, text_field
from lightning_pspo.data.hub import hub_rows
from lightning_pspo.data.rows import Row, check_format, read_rows
from lightning_pspo.data.sources.base import NumberedRow, RowSource, check_file
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem

_BRACKETED_UNIT = re.compile(r"\s*\([^()]*\)\s*$")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


@dataclass(eq=False)
class Benchmark(RowSource):
    """Rows from the hub or from a local file with the hub's field names.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` or ``.arrow`` file, compressed or not;
            None reads the hub.
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
    columns: ClassVar[Columns]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            return
        if self.revision is not None:
            raise InputError(f"`revision` must not be set beside `path`, got {self.revision!r} and {str(self.path)!r}.")
        self.path = check_file(self.path)
        check_format(self.path)

    @property
    def origin(self) -> str:
        """Where the rows come from."""
        return str(self.path) if self.path else f"{self.hub_id}, split {self._split}"

    @property
    def _columns(self) -> Columns:
        return self.columns

    @property
    def _split(self) -> str:
        return self.hub_split

    def _rows(self) -> Iterator[NumberedRow]:
        if self.path:
            rows = read_rows(Path(self.path))
        else:
            hub = hub_rows(self.hub_id, self.hub_config, self._split, self.revision, instead=type(self).__name__)
            rows = enumerate(hub, start=1)
        for number, row in rows:
            yield f"{self.origin}, row {number}", f"{type(self).__name__.lower()}-{self._split}-{number}", row


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
    columns = Columns(question=("question",), answer=("answer",), rule="hash")


@dataclass(eq=False)
class MATH(SplitBenchmark):
    r"""Competition problems (nlile/hendrycks-MATH-benchmark: 12,000 to train on, and MATH-500 to test).

    The answer is the field ``answer``, or the last ``\boxed{}`` of ``solution`` where there is no such field.
    """

    hub_id = "nlile/hendrycks-MATH-benchmark"
    columns = Columns(question=("problem",), answer=("answer", "solution"), rule="plain")


@dataclass(eq=False, kw_only=True)
class SVAMP(SplitBenchmark):
    """One-step word problems with changed wording (ChilleD/SVAMP): 700 to train on, 300 to test.

    The question is ``question_concat``, or ``Body`` and ``Question`` where that field is missing.
    """

    hub_id = "ChilleD/SVAMP"
    columns = Columns(question=("question_concat", "{Body} {Question}"), answer=("Answer",), rule="plain")
    split: Literal["train", "test"] = "test"


@dataclass(eq=False, kw_only=True)
class ASDiv(Benchmark):
    """Elementary word problems (EleutherAI/asdiv, split validation): 2,305, of which 2,084 have one plain number.

    The question is ``body`` and ``question``; a unit in brackets after the answer is removed. The solution is the
    ``formula``, then ``####`` and the answer. The data's licence is CC BY-NC 4.0.

    Args:
        numeric_only: Leave out the rows whose answer is not one integer or decimal, and log how many there are.
    """

    hub_id = "EleutherAI/asdiv"
    hub_split = "validation"
    columns = Columns(question=("{body} {question}",), answer=("answer",), rule="plain")
    numeric_only: bool = True

    def _problem(self, row: Row, identity: str, where: str) -> Problem | None:
        problem = super()._problem(row, identity, where)
        if problem is None:
            return None
        bare = _BRACKETED_UNIT.sub("", problem.answer)
        if _PLAIN_NUMBER.fullmatch(bare):
            formula = row.get("formula")
            return replace(problem, answer=bare, solution=f"{formula}\n#### {bare}" if formula else None)
        # "-(1/3)" and "5 (cm); 6 (cm)" end in a bracket that is not a unit of the whole answer.
        return None if self.numeric_only else problem


@dataclass(eq=False)
class Competition(Benchmark):
    r"""Rows of a question and a short answer, from the hub or from a local file.

    The question is ``problem`` or ``question``. The answer is ``answer``, else the list ``final_answer``, else the last
    ``\boxed{}`` of ``solution``.
    """

    columns = Columns(question=("problem", "question"), answer=("answer", "final_answer", "solution"), rule="plain")

    def _problem(self, row: Row, identity: str, where: str) -> Problem | None:
        answers = row.get("final_answer")
        if answers is not None and "answer" not in row:
            if not isinstance(answers, list) or not answers:
                raise InputError(f"{where}: field 'final_answer' must be a list of answers, got {str(answers)[:40]!r}.")
            texts = (text_field({"final_answer": answer}, "final_answer", where) for answer in answers)
            row = {**row, "final_answer": ", ".join(texts)}
        return super()._problem(row, identity, where)


@dataclass(eq=False)
class MATH500(Competition):
    """The 500 problems of MATH's test split that are commonly reported (HuggingFaceH4/MATH-500)."""

    hub_id = "HuggingFaceH4/MATH-500"


@dataclass(eq=False)
class AIME24(Competition):
    """AIME I and II of 2024 (HuggingFaceH4/aime_2024): 30 problems, answers from 0 to 999."""

    hub_id = "HuggingFaceH4/aime_2024"
    hub_split = "train"

    def _problem(self, row: Row, identity: str, where: str) -> Problem | None:
        problem = super()._problem(row, identity, where)
        if problem is None or not problem.answer.isdecimal():
            return problem
        return replace(problem, answer=str(int(problem.answer)))  # the contest writes 025


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
