"""Ownership of a run's folder: one process writes to it at a time. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from lightning_pspo.errors import InputError
from lightning_pspo.files import locked, read_bounded, unlock

LOCK = "run.lock"


@contextlib.contextmanager
def owned(root: Path) -> Iterator[None]:
    """Own a run's folder within the block; the system ends the ownership of a process that dies.

    The file ``run.lock`` names the owner. It is removed at the end, and with it folders that were made for it alone:
    a run that is refused leaves nothing behind.

    Raises:
        InputError: Another process owns the folder; the message names it.
    """
    made = [folder for folder in (root, *root.parents) if not os.path.exists(folder)]
    path = root / LOCK
    try:
        file = locked(path)
    except OSError as error:
        if os.path.lexists(path):  # a link or a pipe, in a folder of somebody else's
            raise InputError(f"`{path}` must be a file that can be locked: {error.strerror}; remove it.") from error
        raise InputError(
            f"`trainer.default_root_dir` must be a folder that can be made, got {root}: {error.strerror}."
        ) from error
    if file is None:
        raise InputError(
            f"`trainer.default_root_dir` must belong to one run at a time, got {root}: {_owner(path)} is using it. "
            "Wait until that run has ended, or give another directory with --trainer.default_root_dir."
        )
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    owner = {"host": platform.node(), "pid": os.getpid(), "since": since}
    with contextlib.suppress(OSError):  # a full disk, which the run itself reports
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(owner).encode() + b"\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        unlock(file)
        with contextlib.suppress(OSError):  # a folder that is not empty holds a run
            for folder in made:
                folder.rmdir()


def _owner(path: Path) -> str:
    """Return who has locked a file, in words."""
    try:
        owner = json.loads(read_bounded(path))
        host, since = (" ".join(str(owner[key]).split())[:60] for key in ("host", "since"))
        return f"process {owner['pid']:d} on {host}, running since {since},"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it has not been written yet
        return "another process"
