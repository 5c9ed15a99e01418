"""The largest memory of this process since the last look."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

_MIB = 2**20


class Memory:
    """Reads peaks: of a GPU's allocator if there is one, else of this process's resident memory.

    Args:
        device: ``cuda`` or another.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.largest_mib = 0.0

    def since_last_mib(self) -> float:
        """Return the peak since the last call, in MiB, and begin anew.

        Where the system keeps one peak for the whole process, it is that, and never falls.
        """
        if self.on_gpu:
            peak = torch.cuda.max_memory_reserved() / _MIB
            torch.cuda.reset_peak_memory_stats()
        else:
            peak = _peak_mib()
            _begin_anew()
        self.largest_mib = max(self.largest_mib, peak)
        return peak


def now_mib(device: str) -> float:
    """Return what is held now, in MiB."""
    if device == "cuda":
        return torch.cuda.memory_reserved() / _MIB
    return float(psutil.Process().memory_info().rss) / _MIB


def children_mib() -> float:
    """Return what the processes hold that this one has started: graders."""
    return sum(child.memory_info().rss for child in psutil.Process().children(recursive=True)) / _MIB


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (_MIB if sys.platform == "darwin" else 1024)
    row = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
    return int(row.split()[1]) / 1024


def _begin_anew() -> None:
    place = Path("/proc/self/clear_refs")
    if place.exists():
        try:
            place.write_text("5")  # resets VmHWM
        except OSError:  # not allowed in this container: peaks then only grow
            return
