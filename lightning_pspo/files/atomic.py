"""Write files and folders completely or not at all, and recognise a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_pspo.errors import InputError

PARTIAL = ".partial"
"""Suffix of what is still being written; no reader opens such a file."""

_OWN = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(PARTIAL)}")  # what mkdtemp names a folder in `new_folder`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """A file could not be written because the disk is full; ``strerror`` is the whole message."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


def no_follow(path: str, flags: int) -> int:
    """Open a file, as ``opener`` of ``open``; OSError for what a stranger's folder may have in its place.

    A link may lead to any file, and a pipe without a reader would wait for ever.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that the name only ever stands for a complete file, the old one or this."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``path`` once it is complete; after an error ``path`` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, file = _open_partial(path)
    with file:  # which keeps the name of the partial file until it has gone
        try:
            yield file
            file.flush()
            _sync(file.fileno())
            partial.replace(path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
                error.filename = str(path)
            raise


def _open_partial(path: Path) -> tuple[Path, BinaryIO]:
    """Open an empty file that is to replace ``path``; it is this one's alone, where others write the same one, too."""
    number, partial = 0, partial_name(path)
    while True:
        file = os.fdopen(no_follow(str(partial), os.O_WRONLY | os.O_CREAT), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number += 1
            partial = partial_name(path.with_name(f"{path.name}.{number}"))
            file.close()
            continue
        except OSError:  # a file system without locks
            pass
        if names(partial, file):
            file.truncate()
            return partial, file
        file.close()  # its owner has finished it in between


def names(path: Path, file: BinaryIO) -> bool:
    """Return whether a path still names an open file; another process may remove or replace it at any time."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path`` that becomes ``path`` at the end; after an error nothing is left of it.

    What a killed process left of its own beside ``path`` is removed; ``path`` must not exist, or be an empty folder.

    Raises:
        InputError: The folder cannot be made.
        DiskFullError: The disk is full.
    """
    try:
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in filter(_OWN.fullmatch, os.listdir(path.parent)):
            with contextlib.suppress(OSError):  # another user's, a link, or finished in between
                _remove_unlocked(path.parent / leftover)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
        lock = _locked_folder(folder)
    except (OSError, ValueError, RuntimeError) as error:  # of a NUL character, a circle of links
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"`output` must be a folder that can be made, got {str(path)!r}: {reason}.") from error
    try:
        folder.chmod(0o755)
        yield folder
        folder.replace(path)
    except BaseException as error:
        shutil.rmtree(folder)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(
                f"`output` must be a new or empty folder, got {path}, into which another process has written meanwhile."
            ) from error
        if is_full(error):
            free = as_size(free_bytes(path))
            raise DiskFullError(f"{why_full(error)[0]}: {path} could not be written; {free} are free.") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    """Delete a folder unless a process has locked it."""
    if (lock := _locked_folder(folder)) is not None:
        try:
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def _locked_folder(path: Path) -> int | None:
    """Lock a folder for this process and return its descriptor; None if another process has locked it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def partial_name(path: Path) -> Path:
    """Return the name under which ``path`` is written: ``b.json.partial`` for ``b.json``."""
    return path.with_name(path.name + PARTIAL)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; a folder is renamed first, so that its name never stands for half of it."""
    if path.is_dir():
        if not path.name.endswith(PARTIAL):
            doomed = partial_name(path.with_name(f"{path.name}.old"))  # not the name of its successor
            remove(doomed)  # left behind by a crash
            path = path.replace(doomed)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Force a file, or a folder with all its content, to disk."""
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        sync_entry(part)


def sync_entry(path: Path) -> None:
    """Force a file, or the names in a folder but not their content, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Force to disk what a descriptor is of, where the file system can; some cannot for a folder."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def is_full(error: BaseException) -> bool:
    """Return whether a full disk, an exhausted quota or a limit on the size of files caused an error.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(ValueError("no"))
    (True, False)
    """
    return any(_is_one_of(cause, _FULL) for cause in _causes(error))


def why_full(error: BaseException) -> tuple[str, str]:
    """Return what is full after such an error, and what to do about it."""
    if any(_is_one_of(cause, (errno.EFBIG,)) for cause in _causes(error)):
        return "A file is as large as `ulimit -f` or the file system lets it be", "Raise the limit"
    return "The disk is full", "Free some space"


def _is_one_of(error: BaseException, numbers: tuple[int, ...]) -> bool:
    """Tell an error by its number or, as safetensors raises errors of its own, by its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(os.strerror(number) in str(error) for number in numbers)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes, on other ranks as well, each once: an error raised again may be its own."""
    waiting, seen = [error], list[BaseException]()
    while waiting:
        error = waiting.pop()
        if any(error is other for other in seen):
            continue
        seen.append(error)
        yield error
        waiting += [cause for cause in (error.__cause__ or error.__context__,) if cause is not None]
        # CheckpointException of torch: rank -> (error, traceback)
        waiting += [failure[0] for failure in getattr(error, "failures", {}).values()]


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that ``path`` is on, or would be."""
    return shutil.disk_usage(existing_part(path)).free


def existing_part(path: Path) -> Path:
    """Return ``path``, or the innermost folder above it that exists."""
    while not os.path.exists(path):  # unlike Path.exists, False for a name that cannot be
        path = path.parent
    return path


def as_size(count: float) -> str:
    """Return a number of bytes as text.

    >>> as_size(0), as_size(1234567), as_size(84e9)
    ('0 bytes', '1.23 MB', '84 GB')
    """
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} bytes"
