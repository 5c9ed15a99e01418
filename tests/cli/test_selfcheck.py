"""The self-check's progress on stderr."""

from __future__ import annotations

import logging
import time

import pytest

from lightning_pspo.cli import selfcheck


def test_progress_is_shown_and_repeated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(selfcheck, "_SILENCE_S", 1.0)
    logger = logging.getLogger("lightning_pspo.preflight.selfcheck.runs")
    with selfcheck.progress():
        logger.info("sampling")
        time.sleep(2.6)
    logger.info("afterwards")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.endswith("sampling") for line in lines)
