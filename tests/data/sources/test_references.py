"""References that no completion can match."""

from lightning_pspo.data.sources import JSONL
from tests.support.rows import write_rows


def test_references_that_no_completion_can_match_are_kept_and_counted_by_kind(tmp_path, caplog):
    rows = [{"question": str(index), "answer": answer} for index, answer in enumerate(["1", "2", "}", "say\nso {x"])]
    source = JSONL(write_rows(tmp_path, *rows))
    source.load()
    assert [problem.question for problem in source.unverified] == ["2", "3"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 of 4 reference answers do not verify against themselves (expression: 2); the first is '}'" in message
