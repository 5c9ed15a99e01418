"""Work that waits for a server, and is given up where nothing more arrives. Needs no torch."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STALL_SECONDS = 60.0
"""Longest time in which nothing more of a file may arrive."""
CHUNK = 2**20
"""Bytes that arrive before a file on the disk grows; the hub library's own are ten times as many."""
NAME = "waits for a server"
"""Of the threads that do."""


def watched(work: Callable[[], T], seconds: float, *folders: Path) -> T:
    """Do work that waits for a server, in a thread that is left behind if it stalls.

    A client's own limit counts from byte to byte and anew at each retry, so that a server can hold it for hours.

    Args:
        work: The work.
        seconds: Longest time in which nothing may arrive, in seconds.
        folders: Where the hub's library writes what arrives.

    Raises:
        TimeoutError: It has stalled.
    """
    if folders:
        from huggingface_hub import constants

        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name=NAME).start()
    most, since = _arrived(folders), time.monotonic()
    while not wait([result], min(1.0, seconds)).done:
        if (now := _arrived(folders)) > most:
            most, since = now, time.monotonic()
        elif time.monotonic() - since >= seconds:
            raise TimeoutError(f"nothing more has arrived in {seconds:g} s")
    return result.result()


def _arrived(folders: tuple[Path, ...]) -> int:
    """Return a number that grows with every file in the folders and with its size."""
    sizes = [0]
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # renamed meanwhile
                sizes.append(path.lstat().st_size)
    return len(sizes) + sum(sizes)
