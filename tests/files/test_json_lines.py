"""JSON Lines of strangers."""

import gzip
from pathlib import Path

import pytest

from lightning_pspo.files import bounded, json_lines


def test_a_line_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "LINE_BYTES", 1000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + b" " * 1_000_000))
    rows = json_lines.read_objects(path)
    assert next(rows) == (1, 9, {"a": 1})
    with pytest.raises(ValueError, match=r"row 2: must have at most 1,000 bytes\."):
        next(rows)
