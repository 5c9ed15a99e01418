"""Locks that end with the process that holds them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from lightning_pspo.files import locked, unlock


def _lock_and_fork(path: Path) -> None:
    """Lock a file, fork a process that lives on, and die."""
    assert locked(path) is not None
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_ends_with_its_owner(tmp_path: Path) -> None:
    """Also when a process that was forked from it still lives."""
    path = tmp_path / "lock"
    file = locked(path)
    assert file is not None
    assert locked(path) is None
    unlock(file)
    process = multiprocessing.get_context("spawn").Process(target=_lock_and_fork, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    file = locked(path)
    assert file is not None
    unlock(file)
