"""JSON Lines files of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.data.rows import Row, read_rows, text_field
from lightning_pspo.data.sources.base import RowSource, check_file
from lightning_pspo.grading import extract
from lightning_pspo.types import Problem


@dataclass(eq=False)
class JSONL(RowSource):
    r"""A JSON Lines file of your own: one object per line; blank lines are skipped.

    Args:
        path: The file.
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

    def _rows(self) -> Iterator[tuple[int, Row]]:
        return read_rows(Path(self.path), lines=True)

    def _problem(self, row: Row, number: int, where: str) -> Problem:
        identity = (
            f"{Path(self.path).stem}-{number}" if self.id_field is None else text_field(row, self.id_field, where)
        )
        answer = text_field(row, self.answer_field, where)
        if HASH_MARKER in answer or BOXED_MARKER in answer:
            answer = extract(answer)[0] or answer
        return Problem(identity, text_field(row, self.question_field, where), answer)
