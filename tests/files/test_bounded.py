"""Files of strangers that are no files, or larger than any that this program writes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.files import bounded

HUGE = 1 << 40  # bytes, of which a file with a hole takes none


def test_a_document_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"{}")
    assert bounded.read_bounded(path) == b"{}"
    os.truncate(path, HUGE)
    with pytest.raises(InputError, match=r"a\.json must have at most 67\.1 MB, got 1\.1e\+03 GB\."):
        bounded.read_bounded(path)


def test_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + b" " * 999 + b"\n" + b"{}")
    assert [len(line) for line in bounded.read_lines(path)] == [3, 1000, 2]
    os.truncate(path, HUGE)
    lines = bounded.read_lines(path)
    assert [len(next(lines)), len(next(lines))] == [3, 1000]
    with pytest.raises(InputError, match=r"a\.jsonl, line 3: must have at most 1,000 bytes\."):
        next(lines)


@pytest.mark.parametrize("read", [bounded.read_bounded, lambda path: list(bounded.read_lines(path))])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match=f"{name}: it must be a file, but is a device or a pipe"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
