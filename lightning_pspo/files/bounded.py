"""Read files that a stranger may have made: no pipe or device is waited for, and no size fills the memory."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, AnyStr

from lightning_pspo.errors import InputError
from lightning_pspo.files.atomic import as_size

DOCUMENT_BYTES = 64 << 20
"""Of a JSON document."""
DIGEST_BYTES = 4 << 30
"""Of a file whose digest is computed: seconds."""
LINE_BYTES = 1 << 28
"""Of a line; a few bytes on a disk, or in an archive, may stand for one that fills the memory."""


class _NotAFileError(OSError):
    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading, which a link may lead to; OSError for anything else."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise _NotAFileError(errno.ENXIO, "it must be a file, but is a device or a pipe", str(path))


def read_bounded(path: Path, most: int = DOCUMENT_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: It has more than ``most`` bytes.
        OSError: It is not a file, or cannot be read.
    """
    with _open_bounded(path, most) as file:
        return file.read()


def digest_bounded(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raises as `read_bounded` does."""
    with _open_bounded(path, DIGEST_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_bounded(path: Path, most: int) -> io.BufferedReader:
    file = open_file(path)
    if (size := os.fstat(file.fileno()).st_size) > most:
        file.close()
        raise InputError(f"{path} must have at most {as_size(most)}, got {as_size(size)}.")
    return file


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, as ``lines_of`` does."""
    with open_file(path) as file:
        yield from lines_of(file, str(path))


def lines_of(file: IO[AnyStr], name: str, unit: str = "line") -> Iterator[AnyStr]:
    """Yield the rest of a file in lines with their ends.

    Raises:
        InputError: A line, which the message calls a ``unit`` of ``name``, is longer than any that this program writes.
    """
    number = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            kind = "bytes" if isinstance(line, bytes) else "characters"
            raise InputError(f"{name}, {unit} {number}: must have at most {LINE_BYTES:,} {kind}.")
        yield line
