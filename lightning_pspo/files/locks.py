"""File locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)

_locked: set[Any] = set()


def _drop_locks() -> None:
    """Close a forked process's copies of locked files, which would hold the locks after their owner has died."""
    for file in _locked:
        file.raw.close()  # what is buffered is the owner's to write
    _locked.clear()


os.register_at_fork(after_in_child=_drop_locks)


def locked(path: Path) -> BinaryIO | None:
    """Open a file for reading and writing, exclusively until it is unlocked or this process ends; its content stays.

    The result is None if another process has locked it. Processes forked from this one do not share the lock. On a
    file system without locks the file is only opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # not what a link leads to, and no pipe, which would wait
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileExistsError(errno.EEXIST, "not a file", str(path))
        file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            _locked.add(file)
            return file
        file.close()  # its owner deleted it in between


def unlock(file: BinaryIO) -> None:
    """Unlock and close a file that `locked` has opened."""
    _locked.discard(file)
    with contextlib.suppress(OSError):  # of a file system without locks
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a forked process still has it
    file.close()
