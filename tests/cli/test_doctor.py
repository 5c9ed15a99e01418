"""The doctor's parent process: progress, and a worker that takes too long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo.cli import doctor


def started(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_progress_is_shown_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_SILENCE_S", 1.5)
    (tmp_path / "progress").write_text("sampling")
    process = started("import time; time.sleep(4.5); print('done')")
    assert doctor._output(process, tmp_path / "progress", patience_s=60.0) == "done\n"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.endswith("sampling") for line in lines)


def test_a_worker_that_takes_too_long(tmp_path: Path) -> None:
    process = started("import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        doctor._output(process, tmp_path / "progress", patience_s=0.5)
    doctor._end(process)
    assert process.wait(10) == -9
