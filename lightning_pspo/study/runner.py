"""Run the cells of a study, several at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning_pspo.checkpoints.integrity import is_whole
from lightning_pspo.checkpoints.store import checkpoint_folder, newest_checkpoint
from lightning_pspo.errors import InputError, visible
from lightning_pspo.files import as_size, free_bytes, no_follow, open_file, read_bounded, write_atomically
from lightning_pspo.processes import end_with_parent
from lightning_pspo.study.cells import DONE, Cell, file_digests, read_done, unmeasured

FIT = (sys.executable, "-m", "lightning_pspo", "fit")
LOG = "log.txt"
JOB = "job"
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING")
_BAD_INPUT = 2
_TRIES = 2  # starts of a cell without a new checkpoint in between
_LEAST_BYTES = 200 << 20  # that must be free before a cell starts
_TAIL_BYTES = 64 << 10  # of a log, in which its last line is looked for
_TICK_S = 0.2
_JOB_NAME = re.compile(r"[0-9]{1,20}(?:_[0-9]{1,20})?")
_POLL_S = 2.0  # between two looks at the jobs of a cluster
_LAG_S = 15.0  # after which a job has left no result
_PATIENCE_S = 60.0  # for a cell that was asked to stop


@dataclass
class RunningCell:
    """A cell that is running."""

    cell: Cell
    process: subprocess.Popen[bytes]
    begun: float  # by the monotonic clock
    checkpoint: Path | None  # that it started from
    fresh: bool  # whether nothing of it existed before
    failures: int = 0  # starts before this one that have made no checkpoint


@dataclass
class Progress:
    """What a runner has done so far; read by whoever shows it."""

    cells: Sequence[Cell]
    workers: int
    running: dict[int, RunningCell] = field(default_factory=dict)  # slot -> what runs in it
    failed: dict[str, str] = field(default_factory=dict)  # cell -> last line of its output
    done: dict[str, float | None] = field(default_factory=dict)  # finished cell -> its seconds, if it ran in one go

    def refresh(self) -> None:
        """Note which cells have finished."""
        for cell in self.cells:
            if cell.name not in self.done and cell.state == "done":
                self.done[cell.name] = read_done(cell.folder).get("seconds")

    def left_s(self, now: float) -> float | None:
        """Return the seconds until the end, by the mean of the finished cells; None before the first."""
        known = [seconds for seconds in list(self.done.values()) if seconds is not None]
        if not known:
            return None
        each, left = sum(known) / len(known), len(self.cells) - len(self.done) - len(self.failed)
        gone = sum(min(each, now - attempt.begun) for attempt in list(self.running.values()))
        return max(0.0, left * each - gone) / max(1, min(self.workers, left))


class Runner:
    """Brings cells to their end.

    Args:
        workers: Cells at a time, at least 1.
        devices: GPUs that the workers take in turn; empty for the CPU.
        command: Program that runs a cell with the options of ``fit``.
    """

    def __init__(self, *, workers: int, devices: Sequence[str] = (), command: Sequence[str] = FIT) -> None:
        self.workers, self.devices, self.command = workers, devices, command

    def run(self, cells: Sequence[Cell], show: Callable[[Progress], None] = lambda progress: None) -> dict[str, str]:
        """Run what is not done; return the cells that failed and why. One that fails leaves the others running.

        Raises:
            InputError: The disk is full. What has ended is kept.
        """
        progress = Progress(cells, self.workers)
        progress.refresh()
        drop_checkpoints(cells)
        waiting = deque(cell for cell in cells if cell.name not in progress.done)
        try:
            while waiting or progress.running:
                for slot in range(self.workers):
                    if waiting and slot not in progress.running:
                        progress.running[slot] = self._start(waiting.popleft(), slot)
                for slot, attempt in list(progress.running.items()):
                    if (status := attempt.process.poll()) is not None:
                        del progress.running[slot]
                        if (again := self._ended(attempt, slot, status, progress)) is not None:
                            progress.running[slot] = again
                        progress.refresh()
                show(progress)
                time.sleep(_TICK_S)
        finally:  # by Ctrl-C or a full disk: the running cells save what they have
            for attempt in progress.running.values():
                attempt.process.send_signal(signal.SIGTERM)
            for attempt in progress.running.values():
                _wait(attempt.process)
        return progress.failed

    def _start(self, cell: Cell, slot: int, failures: int = 0) -> RunningCell:
        """Start or continue a cell, unless the disk is nearly full."""
        check_disk(cell.folder)
        fresh, checkpoint = cell.state == "waiting", newest_checkpoint(cell.folder)
        variables = {**os.environ, "OMP_NUM_THREADS": str(cell.threads), "MKL_NUM_THREADS": str(cell.threads)}
        variables["SLURM_JOB_NAME"] = "interactive"  # within a job Lightning would take a cell for one of its tasks
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        options = cell.prepare()
        with open(cell.folder / LOG, "ab", opener=no_follow) as log:
            process = subprocess.Popen(
                [*self.command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,
                preexec_fn=end_with_parent,  # a cell that went on would hold its folder
            )
        return RunningCell(cell, process, time.monotonic(), checkpoint, fresh, failures)

    def _ended(self, attempt: RunningCell, slot: int, status: int, progress: Progress) -> RunningCell | None:
        """Note how a cell has ended; start it again if it died on its way."""
        cell = attempt.cell
        if status == 0 and (lacking := unmeasured(cell.folder, cell.config)):
            progress.failed[cell.name] = f"the run ended without {lacking}: {_last_line(cell.folder / LOG)}"
            return None
        if status == 0:
            seconds = round(time.monotonic() - attempt.begun, 1) if attempt.fresh and not attempt.failures else None
            content: dict[str, Any] = {"seconds": seconds, "threads": cell.threads, "settings": cell.digest}
            content |= {"weights": weights_digest(cell.folder), "files": file_digests(cell.folder)}
            content |= {"checkpoints": bytes_of(checkpoint_folder(cell.folder))}
            write_atomically(cell.folder / DONE, json.dumps(content).encode())
            drop_checkpoints([cell])
            return None
        failures = 0 if newest_checkpoint(cell.folder) != attempt.checkpoint else attempt.failures + 1
        if status != _BAD_INPUT and failures < _TRIES:
            return self._start(cell, slot, failures)
        progress.failed[cell.name] = f"status {status}: {_last_line(cell.folder / LOG)}"
        return None


def drop_checkpoints(cells: Sequence[Cell]) -> None:
    """Remove what finished cells do not keep, also of those that ended right before the study did."""
    for cell in cells:
        folder = checkpoint_folder(cell.folder)
        is_linked = any(path.is_symlink() for path in (folder, *folder.parents[:3]))  # to what may be another run's
        if not cell.keep_checkpoints and folder.is_dir() and cell.state == "done" and not is_linked:
            shutil.rmtree(folder)


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, 0 without one."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_disk(folder: Path) -> None:
    """Refuse to start a cell on a disk that is nearly full."""
    if (free := free_bytes(folder)) < _LEAST_BYTES:
        raise InputError(
            f"a cell needs {as_size(_LEAST_BYTES)} of free disk, {as_size(free)} are left in {folder}: free some "
            "space and run the same command again; finished cells are kept."
        )


def weights_digest(folder: Path) -> str | None:
    """Return the SHA-256 of the weights in a run's newest checkpoint; None if it is damaged or in several files."""
    import torch

    newest = newest_checkpoint(folder)
    if newest is None or newest.is_dir() or not is_whole(newest):
        return None
    weights = torch.load(newest, map_location="cpu", weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _last_line(path: Path) -> str:
    lines = list[str]()
    with contextlib.suppress(OSError), open_file(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = file.read(_TAIL_BYTES).decode(errors="replace").split("\n")
    return next((visible(line.strip()[:300]) for line in reversed(lines) if line.strip()), "no output")


def visible_devices() -> list[str]:
    """Return the GPUs that cells may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return listed.split(",")[:count] if listed else [str(index) for index in range(count)]


def gpus_of_workers(devices: Sequence[str], of_cell: Any) -> list[str]:
    """Return the GPUs of each worker, for cells with so many ``trainer.devices``, one unless that is a number or list.

    >>> gpus_of_workers(["0", "1", "2", "5", "7"], 2), gpus_of_workers(["0", "1"], "auto")
    (['0,1', '2,5'], ['0', '1'])
    >>> gpus_of_workers(["0"], [0, 1])
    []
    """
    number = len(of_cell) if isinstance(of_cell, list) else of_cell
    count = number if isinstance(number, int) and number > 1 else 1
    return [",".join(devices[first : first + count]) for first in range(0, len(devices) - count + 1, count)]


class SlurmRunner:
    """Brings every cell to its end as a job of its own, through submitit; jobs of an interrupted study are waited for.

    Args:
        folder: For submitit's scripts and logs.
        parameters: Of its executor, such as ``timeout_min``, ``gpus_per_node`` and ``slurm_partition``.
        cluster: ``slurm``, or ``local`` for processes of this machine.
        command: Program that runs a cell with the options of ``fit``.

    Raises:
        InputError: submitit is not installed, there is no SLURM, or it refuses a parameter.
    """

    def __init__(
        self, *, folder: Path, parameters: Mapping[str, Any], cluster: str = "slurm", command: Sequence[str] = FIT
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise InputError("--slurm needs submitit: pip install 'lightning-pspo[study]'.") from None
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise InputError("--slurm needs SLURM's `sbatch` on the path: run it where jobs can be submitted.")
        self.command, self.folder = tuple(command), folder
        self._job = submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(**parameters)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"`slurm` must hold parameters of submitit's executor: {error}.") from error

    def run(self, cells: Sequence[Cell], show: Callable[[Progress], None] = lambda progress: None) -> dict[str, str]:
        """Run what is not done; return the cells that failed and why.

        Raises:
            InputError: The cluster refuses the jobs.
        """
        from submitit.core.utils import FailedJobError

        drop_checkpoints(cells)
        todo = [cell for cell in cells if cell.state != "done"]
        progress = Progress(cells, max(1, len(todo)))
        jobs: dict[str, Any] = {cell.name: job for cell in todo if (job := self.earlier_job(cell)) is not None}
        new = [cell for cell in todo if cell.name not in jobs]
        try:
            submitted = self.executor.map_array(partial(run_cell, command=self.command), new) if new else []
        except (FailedJobError, OSError) as error:
            raise InputError(f"`slurm`: the jobs could not be submitted: {str(error).strip()}.") from error
        for cell, started in zip(new, submitted, strict=True):
            write_atomically(cell.folder / JOB, started.job_id.encode())
            jobs[cell.name] = started
        while not all(job.done() for job in jobs.values()):
            progress.refresh()
            show(progress)
            time.sleep(_POLL_S)
        return {cell.name: why for cell in todo if (why := _failure(cell, jobs[cell.name]))}

    def earlier_job(self, cell: Cell) -> Any:
        """Return the job of an interrupted study that still waits or runs for a cell; None for none."""
        if not (note := cell.folder / JOB).is_file():
            return None
        name = read_bounded(note).decode(errors="replace")
        job: Any = self._job(folder=self.folder, job_id=name) if _JOB_NAME.fullmatch(name) else None
        return job if job is not None and job.state.upper() in _ALIVE else None


def _failure(cell: Cell, job: Any) -> str:
    """Return why a cell is not done after its job has ended; empty if it is.

    What the job returned is a pickle in the study's folder, which may be anybody's, and is not opened.
    """
    deadline = time.monotonic() + _LAG_S
    while cell.state != "done" and not job.paths.result_pickle.exists() and time.monotonic() < deadline:
        time.sleep(_TICK_S)  # another machine's files may appear late
    return "" if cell.state == "done" else f"its job ended as {job.state}: {_last_line(cell.folder / LOG)}"


def run_cell(cell: Cell, command: Sequence[str] = FIT) -> str:
    """Run one cell to its end; return what went wrong, empty if nothing did."""
    return Runner(workers=1, command=command).run([cell]).get(cell.name, "")
