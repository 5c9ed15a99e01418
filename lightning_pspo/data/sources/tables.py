"""Your own data: files and folders of tables, and data sets of the hub, with columns by any name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from lightning_pspo.data.columns import ANSWERS, QUESTIONS, AnswerRule, Columns, columns_in, text_field
from lightning_pspo.data.hub import hub_rows
from lightning_pspo.data.rows import Row, find_files, format_of, read_rows
from lightning_pspo.data.sources.base import NumberedRow, RowSource, check_file
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem


@dataclass(eq=False, kw_only=True)
class ColumnSource(RowSource, ABC):
    r"""Rows with columns by any name.

    A column is named by its name, by a path into nested ones (``reward_model.ground_truth``), or by a template over
    several (``{body} {question}``). A column may hold a conversation, a list of messages with ``role`` and ``content``
    (or ``from`` and ``value``): its user turn is the question, its last assistant turn the answer, and its system turn
    takes the place of ``data.prompt.system_prompt`` where that is null.

    Args:
        question: Column with the question; None takes the first of ``question``, ``problem``,
            ``prompt``, and the conversations ``messages`` and ``conversations``.
        answer: Column with the reference answer, or with a derivation that ends in it; None takes the first of
            ``answer``, ``final_answer``, ``reward_model.ground_truth``, ``ground_truth``, ``solution``, which must mark
            its answer, and the two conversations.
        answer_rule: How the answer is read: ``plain`` as it stands, ``hash`` after the last ``####``, ``boxed`` in the
            last ``\boxed{}``; ``auto`` as one of the latter two where the text has such a marker, else as it stands.
        solution: Column with a worked solution, which becomes ``Problem.solution``; None takes the text that the answer
            was cut from, or the column ``solution``.
        id: Column with an id, distinct in every row; None takes the file's or data set's name and the row.
        unusable: What to do with a row that has no usable question or answer: ``refuse`` it, or ``skip`` it and say how
            many were skipped.

    Raises:
        InputError: The question would contain the answer.
    """

    question: str | None = None
    answer: str | None = None
    answer_rule: AnswerRule = "auto"
    solution: str | None = None
    id: str | None = None
    unusable: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question and self.answer and set(columns_in(self.answer)) & set(columns_in(self.question)):
            conversation = self.question == self.answer and columns_in(self.question) == [self.question]
            if not conversation:
                raise InputError(f"`question` must not contain the column of `answer`, got {self.question!r}.")

    @property
    def _columns(self) -> Columns:
        return Columns(
            question=QUESTIONS if self.question is None else (self.question,),
            answer=ANSWERS if self.answer is None else (self.answer,),
            rule=self.answer_rule,
            solution=self.solution,
        )

    def _problem(self, row: Row, identity: str, where: str) -> Problem | None:
        return super()._problem(row, identity if self.id is None else text_field(row, self.id, where), where)


@dataclass(eq=False)
class Table(ColumnSource):
    """Rows of local files: CSV, Parquet, JSON, JSON Lines or Arrow.

    Args:
        path: A file, a pattern such as ``data/train-*.parquet``, or a folder as on the hub. Text may be compressed with
            gzip, bzip2 or xz.
        split: Split of a folder, ``train`` when not given.
        delimiter: What separates the fields of CSV; None for a comma, and a tab in ``.tsv``.

    Raises:
        InputError: There is no such file, or its ending is not known.
    """

    path: str | Path
    _: KW_ONLY
    split: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise InputError(f"`delimiter` must be one character, got {self.delimiter!r}.")
        self._files = find_files(self.path, self.split)

    @property
    def origin(self) -> str:
        """Where the rows come from."""
        return f"{self.path}, split {self.split}" if self.split else str(self.path)

    def _rows(self) -> Iterator[NumberedRow]:
        for file in self._files:
            for number, row in read_rows(file, delimiter=self.delimiter):
                yield f"{file}, row {number}", f"{format_of(file)[0]}-{number}", row


@dataclass(eq=False)
class HubDataset(ColumnSource):
    """Rows of a data set on the Hugging Face hub.

    Args:
        dataset: Its id, such as ``openai/gsm8k``.
        config: Its configuration, such as ``main``; None where it has only one.
        split: Its split.
        revision: Commit, tag or branch; None for the newest.
    """

    dataset: str
    _: KW_ONLY
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def origin(self) -> str:
        """Where the rows come from."""
        return f"{self.dataset}, split {self.split}"

    def _rows(self) -> Iterator[NumberedRow]:
        stem = self.dataset.rpartition("/")[2]
        rows = hub_rows(self.dataset, self.config, self.split, self.revision)
        for number, row in enumerate(rows, start=1):
            yield f"{self.origin}, row {number}", f"{stem}-{self.split}-{number}", row


@dataclass(eq=False)
class JSONL(RowSource):
    r"""A JSON Lines file with the fields ``question`` and ``answer``; ``Table`` reads other files as well.

    Args:
        path: The file, one object per line; blank lines are skipped.
        question_field: Field with the question.
        answer_field: Field with the reference answer (text or a number). One that ends a derivation must be marked, by
            ``####`` as in GSM8K or ``\boxed{}`` as in MATH.
        id_field: Field with an id, distinct in every row; None takes the file's name and the line.

    Raises:
        InputError: ``path`` is not a file.
    """

    path: str | Path
    _: KW_ONLY
    question_field: str = "question"
    answer_field: str = "answer"
    id_field: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = check_file(self.path)

    @property
    def origin(self) -> str:
        """Where the rows come from."""
        return str(self.path)

    @property
    def _columns(self) -> Columns:
        return Columns(question=(self.question_field,), answer=(self.answer_field,))

    def _rows(self) -> Iterator[NumberedRow]:
        for number, row in read_rows(Path(self.path), lines=True):
            where = f"{self.path}, row {number}"
            stem = f"{Path(self.path).stem}-{number}"
            yield where, stem if self.id_field is None else text_field(row, self.id_field, where), row
