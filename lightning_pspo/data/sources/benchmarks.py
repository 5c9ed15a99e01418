"""Published benchmarks, from the hub or from a local copy with the hub's field names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from lightning_pspo.data.sources.base import RowSource, check_file
from lightning_pspo.data.sources.rows import SUFFIXES, Row, read_rows, text_field
from lightning_pspo.errors import InputError
from lightning_pspo.grading import last_boxed
from lightning_pspo.types import Problem

_BRACKETED_UNIT = re.compile(r"\s*\([^()]*\)\s*$")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def stated_answer(row: Row, where: str) -> str:
    r"""Return the field ``answer`` of a row, else the last ``\boxed{}`` of its ``solution``.

    Args:
        row: As it was read.
        where: File and row, for the error.

    Raises:
        InputError: If it has neither.

    >>> stated_answer({"solution": r"Half of 8: \boxed{4}"}, "file.jsonl, row 1")
    '4'
    """
    if "answer" in row:
        return text_field(row, "answer", where)
    answer = last_boxed(text_field(row, "solution", where))
    if answer is None:
        raise InputError(f"{where}: must have the field 'answer', or a \\boxed{{}} answer in 'solution'.")
    return answer


class Benchmark(RowSource):
    """Rows from the hub or from a local file with the hub's field names.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        split: The hub's split, and a part of the problems' ids. A local file is taken whole, whatever this says.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many usable rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id: ClassVar[str]
    hub_config: ClassVar[str | None] = None

    def __init__(self, path: str | Path | None, split: str, revision: str | None, limit: int | None) -> None:
        if path is not None and revision is not None:
            raise InputError(f"`revision` must not be set beside `path`, got {revision!r} and {str(path)!r}.")
        self.path = None if path is None else check_file(path, SUFFIXES)
        self.split, self.revision = split, revision
        super().__init__(str(self.path) if self.path else f"{self.hub_id}, split {split}", limit)

    def _id(self, number: int) -> str:
        return f"{type(self).__name__.lower()}-{self.split}-{number}"

    def _rows(self) -> Iterator[tuple[int, Row]]:
        if self.path is not None:
            return read_rows(self.path)
        return self._hub_rows()

    def _hub_rows(self) -> Iterator[tuple[int, Row]]:
        import datasets

        try:
            rows = datasets.load_dataset(self.hub_id, self.hub_config, split=self.split, revision=self.revision)
        except Exception as error:  # the hub's libraries raise a dozen unrelated types
            raise InputError(
                f"{self.hub_id} (split {self.split}) cannot be read from the hub: {str(error)[:200]}. Set `path` of "
                f"{type(self).__name__} to a local {', '.join(SUFFIXES)} file with the same fields."
            ) from error
        yield from enumerate(rows, start=1)


class GSM8K(Benchmark):
    """Grade-school word problems (openai/gsm8k): 7,473 to train on, 1,319 to test; answers stand after ``####``.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        split: The hub's split, and a part of the problems' ids. A local file is taken whole, whatever this says.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "openai/gsm8k"
    hub_config = "main"

    def __init__(
        self,
        path: str | Path | None = None,
        split: Literal["train", "test"] = "train",
        revision: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(path, split, revision, limit)

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        _, marker, answer = text_field(row, "answer", where).rpartition("####")
        if not marker or not answer.strip():
            raise InputError(
                f"{where}: field 'answer' must have the final answer after ####, got {marker + answer!r:.60}."
            )
        return Problem(self._id(number), text_field(row, "question", where), answer.strip())


class MATH(Benchmark):
    r"""Competition problems (nlile/hendrycks-MATH-benchmark: 12,000 to train on, and MATH-500 to test).

    The answer is the field ``answer``, or the last ``\boxed{}`` of ``solution`` where there is no such field.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        split: The hub's split, and a part of the problems' ids. A local file is taken whole, whatever this says.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "nlile/hendrycks-MATH-benchmark"

    def __init__(
        self,
        path: str | Path | None = None,
        split: Literal["train", "test"] = "train",
        revision: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(path, split, revision, limit)

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        return Problem(self._id(number), text_field(row, "problem", where), stated_answer(row, where))


class MATH500(MATH):
    """The 500 problems of MATH's test split that are commonly reported (HuggingFaceH4/MATH-500).

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "HuggingFaceH4/MATH-500"

    def __init__(self, path: str | Path | None = None, revision: str | None = None, limit: int | None = None) -> None:
        super().__init__(path, "test", revision, limit)


class SVAMP(Benchmark):
    """One-step word problems with changed wording (ChilleD/SVAMP): 700 to train on, 300 to test.

    The question is ``question_concat``, or ``Body`` and ``Question`` where that field is missing.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        split: The hub's split, and a part of the problems' ids. A local file is taken whole, whatever this says.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "ChilleD/SVAMP"

    def __init__(
        self,
        path: str | Path | None = None,
        split: Literal["train", "test"] = "test",
        revision: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(path, split, revision, limit)

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        if "question_concat" in row:
            question = text_field(row, "question_concat", where)
        else:
            question = f"{text_field(row, 'Body', where)} {text_field(row, 'Question', where)}"
        return Problem(self._id(number), question, text_field(row, "Answer", where))


class ASDiv(Benchmark):
    """Elementary word problems (EleutherAI/asdiv, split validation): 2,305, of which 2,084 have one plain number.

    The question is ``body`` and ``question``; a unit in brackets behind the answer is taken away. The data's licence is
    CC BY-NC 4.0.

    Args:
        path: Local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; None reads the hub.
        revision: Commit, tag or branch of the hub's data set; None for the newest.
        numeric_only: Leave out the rows whose answer is not one integer or decimal, and log how many there are.
        limit: Take the first that many usable rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file or has another suffix, ``revision`` is set beside it, or ``limit`` is below 1.
    """

    hub_id = "EleutherAI/asdiv"

    def __init__(
        self,
        path: str | Path | None = None,
        revision: str | None = None,
        numeric_only: bool = True,
        limit: int | None = None,
    ) -> None:
        super().__init__(path, "validation", revision, limit)
        self.numeric_only = numeric_only

    def _problem(self, row: Row, number: int, where: str) -> Problem | None:
        question = f"{text_field(row, 'body', where)} {text_field(row, 'question', where)}"
        answer = text_field(row, "answer", where)
        bare = _BRACKETED_UNIT.sub("", answer)
        if _PLAIN_NUMBER.fullmatch(bare):
            return Problem(self._id(number), question, bare)
        # "-(1/3)" and "5 (cm); 6 (cm)" end in a bracket that is no unit of the whole answer.
        return None if self.numeric_only else Problem(self._id(number), question, answer)
