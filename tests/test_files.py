"""Files that are complete or missing, and locks that end with their owner."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from lightning_pspo.files import locked, partial_name, remove, unlock


def test_a_folder_is_removed_while_its_successor_is_written(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    coming = partial_name(path)
    for folder in (path, coming, partial_name(path.with_name("folder.old"))):  # the last is of a crash
        folder.mkdir()
        (folder / "file").write_text("content")
    remove(path)
    assert sorted(tmp_path.iterdir()) == [coming]
    remove(path)


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
