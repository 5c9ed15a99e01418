"""Processes that end with the one that started them. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # now: nothing should be loaded between a fork and its program


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, on Linux; exit if ``parent`` has ended already."""
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
