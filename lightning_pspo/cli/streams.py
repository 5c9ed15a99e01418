"""Keep a closed pipe, a full disk or an ASCII terminal from ending a command; show warnings as plain lines."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from lightning_pspo.errors import visible


class _IgnoringErrors(io.FileIO):
    """A file whose writes never fail: text that nobody can read is dropped."""

    def write(self, data: object) -> int:
        """Write what can be written."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def ignore_output_errors() -> None:
    """Let stdout and stderr survive a reader that is gone, a full disk, and characters that they cannot encode.

    A run must not end because ``| head`` has seen enough or the terminal knows ASCII only.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, _ignoring_errors(getattr(sys, name), number))


def _ignoring_errors(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # closed when the process began
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != number:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_IgnoringErrors(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    r"""Write a warning as one line; only one that is meant for programmers says where in the code it comes from.

    It stands for ``warnings.showwarning``: Lightning replaces ``warnings.formatwarning`` when it is imported.

    >>> show_warning("Low on memory,   \x1b[1mprobably.", UserWarning, "x.py", 3, sys.stdout)
    warning: Low on memory, ␛[1mprobably.
    """
    kind = "warning" if issubclass(category, UserWarning) else f"{filename}:{lineno}: {category.__name__}"
    (file or sys.stderr).write(f"{kind}: {visible(' '.join(str(message).split()))}\n")


@contextlib.contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the level of loggers for a while; a program that calls the command keeps its own levels."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, previous in zip(loggers, levels, strict=True):
            logger.setLevel(previous)
