"""Record what the probe observes: rollouts with their updates, and the memory of this process."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from lightning_pspo.preflight.doctor.forecast import Step
from lightning_pspo.types import Sample

MIB = 2**20


@dataclass
class Observed:
    """Observations of the probe."""

    steps: list[Step] = field(default_factory=list)  # its rollouts
    samples: list[Sample] = field(default_factory=list)  # all completions; neighbours form groups
    rewards: list[list[float]] = field(default_factory=list)  # one list of ``group_size`` values per group
    terms: dict[str, list[float]] = field(default_factory=dict)  # name -> values of all completions
    ends: Counter[int] = field(default_factory=Counter)  # end-of-sequence id -> completions that ended with it
    strays: Counter[int] = field(default_factory=Counter)  # other id that ends turns -> completions that contain it
    divergences: list[float] = field(default_factory=list)  # KL of each rollout's updates, nats per token
    ratios: tuple[float, float] = (1.0, 1.0)  # smallest and largest ratio
    norms: list[float] = field(default_factory=list)  # gradient norm of each update that had a gradient
    rates: list[float] = field(default_factory=list)  # learning rate of each update
    validated: tuple[int, float, float] | None = None  # problems, seconds and peak MiB of one validation batch
    checkpoint: tuple[float, float, float] | None = None  # bytes, seconds and peak MiB of one checkpoint
    start_s: float = 0.0  # seconds from the start of the process to the first rollout, without the doctor's own work
    end_s: float = 0.0  # seconds from the last rollout to the end, without the validation
    other_mib: list[float] = field(default_factory=list)  # peaks outside of rollouts and updates
    children_mib: float = 0.0  # memory of grading processes
    failure: str = ""  # why the probe failed; empty if it did not


class PeakMemory:
    """Peaks of a GPU's allocator, or, on another type of device, of this process's resident memory."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def since_last_mib(self) -> float:
        """Return the peak since the last call, in MiB.

        Where the system keeps a single peak per process, it never falls.
        """
        if self.on_gpu:
            peak = torch.cuda.max_memory_reserved() / MIB
            torch.cuda.reset_peak_memory_stats()
            return peak
        status = Path("/proc/self/status")
        if not status.is_file():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
        row = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        with contextlib.suppress(OSError):  # forbidden in some containers
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        return int(row.split()[1]) / 1024


def now_mib(device: str) -> float:
    """Return the memory in use, in MiB."""
    if device == "cuda":
        return torch.cuda.memory_reserved() / MIB
    return float(psutil.Process().memory_info().rss) / MIB


def children_mib() -> float:
    """Return the memory of the running processes that this one has started, such as graders, in MiB."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended in the meantime
            total += child.memory_info().rss / MIB
    return total
