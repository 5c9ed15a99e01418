"""JSON Lines files of the user's own, and references that no completion can match."""

import pytest

from lightning_pspo.data.sources import JSONL
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem
from tests.support.rows import write_rows


def test_jsonl_fields_ids_numbers_blank_lines_and_duplicates(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(
        b'\xef\xbb\xbf{"q": "a", "n": 27.0, "key": 5}\n\n{"q": "a", "n": 2.5, "key": "x"}\r\n'
        b'{"q": "\xc3\xa9\xe2\x80\xa8", "n": -3, "key": "y"}'
    )
    assert JSONL(file, question_field="q", answer_field="n").load() == [
        Problem("mine-1", "a", "27"),
        Problem("mine-3", "a", "2.5"),
        Problem("mine-4", "é", "-3"),
    ]
    assert [
        problem.id for problem in JSONL(file, question_field="q", answer_field="n", id_field="key", limit=2).load()
    ] == ["5", "x"]


def test_equal_ids_are_refused(tmp_path):
    file = write_rows(tmp_path, {"id": 1, "question": "a", "answer": 1}, {"id": 1, "question": "b", "answer": 2})
    with pytest.raises(InputError, match=r"row 2: the id must be unique, got '1' again"):
        JSONL(file, id_field="id").load()
