"""Files that are whole or not there: atomic writes, locks, and how a full disk shows. Needs no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"
"""Ending of what is still being written; no reader takes such a name for a file."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """Something could not be written for want of space; ``strerror`` is all there is to say."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that the name only ever stands for a complete file.

    Raises:
        OSError: It cannot be written; what ``path`` held before is still there.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` once it is complete; after an error ``path`` is as it was.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_name(path: Path) -> Path:
    """Return the name under which ``path`` is written.

    >>> partial_name(Path("a/b.json")).name
    'b.json.partial'
    """
    return path.with_name(path.name + PARTIAL)


def remove(path: Path) -> None:
    """Delete a file or folder; nothing happens if it is gone already. A folder loses its name first, then its parts."""
    if path.is_dir():
        if not path.name.endswith(PARTIAL):
            going = partial_name(path.with_name(f"{path.name}.old"))  # not the name of what takes its place
            remove(going)  # left behind by a crash
            path = path.replace(going)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Force a file, or a folder with all that is in it, to disk."""
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        sync_entry(part)


def sync_entry(path: Path) -> None:
    """Force a file, or the names in a folder but not what they stand for, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locked(path: Path) -> BinaryIO | None:
    """Open a file for reading and writing, this process's alone until it is unlocked; what is in it stays.

    Returns:
        None if it is another process's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()  # the one who had it took it away in between


def unlock(file: BinaryIO) -> None:
    """Give a locked file back and close it."""
    fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a forked process has it, too
    file.close()


def is_full(error: BaseException) -> bool:
    """Tell whether a full disk, or a used-up quota, is behind an error.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(ValueError("no"))
    (True, False)
    """
    return any(isinstance(one, OSError) and one.errno in _FULL for one in _behind(error))


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that it came from, on other ranks as well."""
    if error is None:
        return
    yield error
    for failure in getattr(error, "failures", {}).values():  # CheckpointException of torch: rank -> (error, traceback)
        yield from _behind(failure[0])
    yield from _behind(error.__cause__ or error.__context__)


def free_bytes(path: Path) -> int:
    """Return how much can still be written where ``path`` is, or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def as_size(count: float) -> str:
    """Return a number of bytes in words.

    >>> as_size(0), as_size(1234567), as_size(84e9)
    ('0 bytes', '1.23 MB', '84 GB')
    """
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} bytes"


def read_objects(
    path: Path, unit: str = "row", parse: Callable[[str], Any] = json.loads
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the number of each line that is not blank, from 1, its size in bytes, and the object in it.

    Args:
        path: A file in UTF-8, with or without a byte order mark.
        unit: What messages call a line.
        parse: Makes a value of JSON, or raises ValueError.

    Raises:
        ValueError: A line is not UTF-8, no JSON, or no object.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}, {unit} {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                fields = parse(text) if text else None
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 (byte {error.start + 1} of the line).") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: malformed JSON: {error}.") from None
            if not text:
                continue
            if not isinstance(fields, dict):
                raise ValueError(f"{where}: must be a JSON object, got {text[:40]!r}.")
            yield number, len(line), fields
