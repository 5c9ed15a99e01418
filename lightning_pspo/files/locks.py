"""File locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import stat
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from lightning_pspo.files.atomic import names

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)

_locked: dict[Any, Path | None] = {}  # with the file that names the owner where there are no locks


def _drop_locks() -> None:
    """Close a forked process's copies of locked files, which would hold the locks after their owner has died."""
    for file in _locked:
        file.raw.close()  # what is buffered is the owner's to write
    _locked.clear()


os.register_at_fork(after_in_child=_drop_locks)


def locked(path: Path) -> BinaryIO | None:
    """Open a file for reading and writing, exclusively until it is unlocked or this process ends; its content stays.

    The result is None if another process has locked it. Processes forked from this one do not share the lock. On a
    file system without locks a file beside it, ``....owner``, names the process; one that has died on this host owns
    nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # not what a link leads to, and no pipe, which would wait
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileExistsError(errno.EEXIST, "not a file", str(path))
        file = os.fdopen(descriptor, "r+b")
        owner = None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            owner = path.with_name(f"{path.name}.owner")
            if not _own(owner):
                file.close()
                return None
        if names(path, file):
            _locked[file] = owner
            return file
        file.close()  # its owner deleted it in between
        if owner is not None:
            owner.unlink()


def unlock(file: BinaryIO) -> None:
    """Unlock and close a file that `locked` has opened."""
    owner = _locked.pop(file, None)
    with contextlib.suppress(OSError):  # of a file system without locks
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a forked process still has it
    file.close()
    if owner is not None:
        owner.unlink(missing_ok=True)


_UNREADABLE = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


def _own(owner: Path) -> bool:
    """Make the file that names this process; return False while it names another one that may live."""
    host, pid, job = platform.node(), os.getpid(), os.environ.get("SLURM_JOB_ID", "")
    while not _made(owner, json.dumps({"host": host, "pid": pid, "started": _started(pid), "job": job}).encode()):
        try:
            entry = json.loads(content := owner.read_bytes())
            their_host, their_pid, started = str(entry["host"]), int(entry["pid"]), int(entry["started"])
            is_requeued = bool(job) and entry.get("job") == job  # SLURM has ended the job there before
        except FileNotFoundError:
            continue
        except _UNREADABLE:  # one being written, or else
            their_host, their_pid, started, is_requeued = "", 0, 0, False
        if their_host == host and _started(their_pid) == started:
            return False
        if their_host != host and not is_requeued:
            warnings.warn(
                f"{owner} names the owner, as there are no locks here: remove it if that has died.", stacklevel=2
            )
            return False
        turn = owner.with_name(f"{owner.name}.{their_pid}-{started}")
        try:
            turn.mkdir()  # one process at a time removes what this dead one has left
        except FileExistsError:
            warnings.warn(
                f"{turn}: a process takes {owner.name} over, or died while it did: remove it if so.", stacklevel=2
            )
            return False
        with contextlib.suppress(FileNotFoundError):
            if owner.read_bytes() == content:
                owner.unlink()
        turn.rmdir()
    return True


def _made(file: Path, content: bytes) -> bool:
    """Make a file; return False if there is one."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with contextlib.suppress(OSError):  # a full disk, which its user reports
        os.write(descriptor, content)
    os.close(descriptor)
    return True


def _started(pid: int) -> int | None:
    """Return when a process has started, in ticks since the machine has; None if it does not run."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "XZ" else int(numbers[18])
