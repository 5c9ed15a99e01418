"""JSON Lines files of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.data.sources.base import RowSource, check_file
from lightning_pspo.data.sources.rows import Row, read_rows, text_field
from lightning_pspo.grading import extract
from lightning_pspo.types import Problem


class JSONL(RowSource):
    r"""A JSON Lines file of one's own: one object per line; blank lines are passed over.

    Args:
        path: The file.
        question_field: Field with the question.
        answer_field: Field with the reference answer (text or a number). One that ends a derivation must be marked, by
            ``####`` as in GSM8K or ``\boxed{}`` as in MATH.
        id_field: Field with an id, distinct in every row; None takes the file's name and the line.
        limit: Take the first that many rows only, at least 1; None takes all.

    Raises:
        InputError: ``path`` is no file, or ``limit`` is below 1.
    """

    def __init__(
        self,
        path: str | Path,
        question_field: str = "question",
        answer_field: str = "answer",
        id_field: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = check_file(path)
        self.question_field, self.answer_field, self.id_field = question_field, answer_field, id_field
        super().__init__(str(self.path), limit)

    def _rows(self) -> Iterator[tuple[int, Row]]:
        return read_rows(self.path, lines=True)

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        identity = f"{self.path.stem}-{number}" if self.id_field is None else text_field(row, self.id_field, where)
        answer = text_field(row, self.answer_field, where)
        if HASH_MARKER in answer or BOXED_MARKER in answer:
            answer = extract(answer)[0] or answer
        return Problem(identity, text_field(row, self.question_field, where), answer)
