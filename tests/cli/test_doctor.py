"""The doctor's parent process: progress, and a worker that takes too long."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo import progress
from lightning_pspo.cli import doctor
from lightning_pspo.progress import WORK, Display


def started(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_the_workers_progress_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    monkeypatch.setattr(Display, "tick", lambda self, now: stages.append(WORK.stage))
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    (tmp_path / "progress").write_text("sampling")
    process = started("import time; time.sleep(0.5); print('done')")
    assert doctor._output(process, tmp_path / "progress", patience_s=60.0) == "done\n"
    assert "sampling" in stages


def test_a_worker_that_takes_too_long(tmp_path: Path) -> None:
    process = started("import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        doctor._output(process, tmp_path / "progress", patience_s=0.5)
    doctor._end(process)
    assert process.wait(60) == -9
