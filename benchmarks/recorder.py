"""Time and memory of a contestant's iterations, and the process that a contestant runs in."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from command_line import environment
from torch import Tensor
from workload import WARM_UP, Workload, read

MIB = 2**20


class Recorder:
    """Times iterations from the beginning of one to the beginning of the next, and reads the process's memory."""

    def __init__(self, workload: Workload, rest: str = "other") -> None:
        self.workload = workload
        self.rest = rest  # name of the phase for the time outside of the others
        self.iterations: list[dict[str, Any]] = []
        self._began = self._began_cpu = 0.0
        self._phases: dict[str, float] = {}
        self._prompt_lengths: list[int] = []
        self._lengths: list[int] = []
        self._open = False
        self._start_mib: float | None = None

    def clock(self) -> float:
        """Return the wall time once the device is idle."""
        if self.workload.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(self) -> None:
        """Begin an iteration, and end the one before."""
        if self._start_mib is None:
            self._start_mib = memory_mib("VmRSS")
        self.end()
        self._phases, self._prompt_lengths, self._lengths, self._open = {}, [], [], True
        self._began, self._began_cpu = self.clock(), time.process_time()

    def end(self) -> None:
        """End the iteration; nothing happens if none has begun."""
        if not self._open:
            return
        seconds = self.clock() - self._began
        self.add({self.rest: seconds - sum(self._phases.values())})
        iteration = {"seconds": seconds, "cpu_seconds": time.process_time() - self._began_cpu, "phases": self._phases}
        iteration |= {"prompt_lengths": self._prompt_lengths, "lengths": self._lengths, "rss_mib": memory_mib("VmRSS")}
        self.iterations.append(iteration)
        self._open = False

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = self.clock()
        yield
        self.add({name: self.clock() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds to phases of the iteration at hand."""
        for name, value in seconds.items():
            self._phases[name] = self._phases.get(name, 0.0) + value

    def completed(self, prompt_mask: Tensor, completion_mask: Tensor) -> None:
        """Note how many tokens the iteration's prompts (B or N rows) and completions (N rows) have."""
        rows = len(completion_mask) // len(prompt_mask)
        self._prompt_lengths.extend(length for length in prompt_mask.sum(dim=1).tolist() for _ in range(rows))
        self._lengths.extend(completion_mask.sum(dim=1).tolist())

    def write(self, path: Path) -> None:
        """Write the figures as JSON."""
        device = torch.cuda.max_memory_allocated() / MIB if self.workload.device == "cuda" else None
        result = {
            "iterations": self.iterations,
            "start_rss_mib": self._start_mib,
            "peak_rss_mib": memory_mib("VmHWM") + children_mib(),
            "peak_device_mib": device,
            "threads": torch.get_num_threads(),
        }
        path.write_text(json.dumps(result))


def memory_mib(field: str, process: int | str = "self") -> float:
    """Return resident memory: ``VmRSS`` now, ``VmHWM`` at its peak; without /proc always the peak."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def children_mib() -> float:
    """Return the peak resident memory of the running processes that this one has started: graders."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):  # ended, a zombie among them
            total += memory_mib("VmHWM", child.pid)
    return total


def run_process(script: str, folder: Path, workload: Workload) -> dict[str, Any]:
    """Run a contestant's script on the files in ``folder`` in a fresh process; return its figures."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    devices = {"CUDA_VISIBLE_DEVICES": ""} if workload.device == "cpu" else {}
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder), str(result)]
    variables = environment(threads=max(1, workload.threads // workload.ranks)) | devices
    process = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.returncode or not result.is_file():
        sys.exit(f"{script} ended with status {process.returncode}:\n{process.stdout[-4000:]}")
    figures: dict[str, Any] = json.loads(result.read_text())
    return figures


def start(folder: str, rest: str = "other") -> tuple[Path, Workload, Recorder]:
    """Set threads and seed of a contestant's process; return its folder, workload and recorder."""
    path = Path(folder)
    workload = read(path)
    torch.set_num_threads(max(1, workload.threads // workload.ranks))
    torch.manual_seed(workload.seed)
    return path, workload, Recorder(workload, rest)


def measured(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a process's iterations without its warm-up."""
    return list(run["iterations"][WARM_UP:])


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians over the measured iterations of several processes, and over their peaks of memory."""
    iterations = [iteration for run in runs for iteration in measured(run)]
    phases = {name: None for iteration in iterations for name in iteration["phases"]}
    median = statistics.median
    peaks = [run["peak_device_mib"] for run in runs]
    return {
        "seconds": median([iteration["seconds"] for iteration in iterations]),
        "cpu_seconds": median([iteration["cpu_seconds"] for iteration in iterations]),
        "phases": {name: median([it["phases"].get(name, 0.0) for it in iterations]) for name in phases},
        "tokens_per_second": median([sum(it["lengths"]) / it["seconds"] for it in iterations]),
        "mean_length": statistics.mean([length for it in iterations for length in it["lengths"]]),
        "peak_rss_mib": median([run["peak_rss_mib"] for run in runs]),
        "start_rss_mib": median([run["start_rss_mib"] for run in runs]),
        "rss_growth_mib": median([run["iterations"][-1]["rss_mib"] - run["iterations"][0]["rss_mib"] for run in runs]),
        "peak_device_mib": None if None in peaks else median(peaks),
    }


def machine() -> dict[str, Any]:
    """Return the machine and the versions that the figures depend on."""
    from lightning_pspo.callbacks.run_report import environment  # not in the processes that are measured

    return environment(1, 1) | {"load_average": os.getloadavg()[0]}
