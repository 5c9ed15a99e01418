"""Worker processes that compare answers: none of them can hang a batch.

`WorkerPool.judge` sends pairs to workers in chunks and reads one byte per pair. Three rules keep a slow pair from
costing the others anything:

- A worker that needs longer than ``PATIENCE_S`` for a pair is set aside. It works on until the pair's deadline, behind
  the others (``nice``) once it has used much processor time; the rest of its chunk goes back to the queue, and a new
  worker, a fork of some milliseconds, takes its place. ``SPARES`` pairs can be set aside at once.
- A worker that was set aside is ended after its answer, or at the deadline.
- A pair at which a worker died is tried once more, by itself: the cause may have been another, such as a machine that
  was short of memory.

The deadline is processor time of the worker alone, so that no verdict depends on what else the machine does. A pair
without a verdict after ``BACKSTOP`` deadlines of wall time, because it sleeps, is an error, and a warning says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_pspo.grading import worker as far
from lightning_pspo.grading.verdicts import Verdict

_log = logging.getLogger(__name__)

PATIENCE_S = 0.05  # after which a pair counts as slow; most take a few milliseconds
SPARES = 16  # pairs that can be set aside at once, each with a worker of its own
CHUNK = 16  # pairs that a worker gets at once, at most
PAIRS_PER_WORKER = 10_000  # a worker is replaced after about so many, because caches grow
EQUIVALENCE = "lightning_pspo.grading.equivalence:equivalent"
BACKSTOP, LEAST_BACKSTOP_S = 60.0, 60.0  # wall time for one pair: so many deadlines, and at least so many seconds

_START_S = 300.0
_ATTEMPTS = 3
_VERDICTS = {
    far.EQUIVALENT[0]: Verdict.CORRECT,
    far.DIFFERENT[0]: Verdict.WRONG,
    far.FAILED[0]: Verdict.ERROR,
    far.LATE[0]: Verdict.TIMEOUT,
}


class Server:
    """A running `worker.main`; its workers end by themselves some seconds after ``wall_s``.

    Raises:
        RuntimeError: It did not start; the message has the last line of its output.
    """

    def __init__(self, compare: str, memory_mb: int, deadline_s: float, wall_s: float) -> None:
        self.control, theirs = socket.socketpair()
        self.control.settimeout(_START_S)
        code = "from lightning_pspo.grading.worker import main; main()"
        arguments = [str(os.getpid()), compare, str(memory_mb << 20), str(deadline_s), str(wall_s + 5.0)]
        with theirs, tempfile.TemporaryFile() as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *arguments],  # -P: no module from the working directory
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                process_group=0,  # Ctrl-C is for the owner
            )
            theirs.close()
            try:
                ready = self.control.recv(1) == far.READY
            except OSError:
                ready = False
            if not ready:
                self.close()
                output.seek(0)
                last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise RuntimeError(f"The grading workers could not be started (exit {self.process.returncode}): {last}")

    def send(self, letter: bytes, number: int, link: socket.socket | None = None) -> None:
        """Send a command; a server that is gone needs none."""
        try:
            socket.send_fds(self.control, [far.COMMAND.pack(letter, number)], [] if link is None else [link.fileno()])
        except OSError:
            self.close()

    def gone(self) -> bool:
        """Return whether it died or was closed."""
        return self.control.fileno() < 0 or _readable(self.control)  # all that it ever sends now is its end

    def stop(self) -> None:
        """Have it end, and with it its workers, without waiting for that; any thread may call this."""
        with contextlib.suppress(OSError):  # it is closed, or the server is gone
            self.control.shutdown(socket.SHUT_RDWR)  # a fork of this process may hold it: closing alone does nothing

    def close(self) -> None:
        """End it, and with it its workers."""
        self.stop()
        self.control.close()
        try:
            self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(eq=False)
class Worker:
    """The owner's record of one worker."""

    server: Server
    number: int  # its name there
    link: socket.socket  # our end
    ready: bool = False
    slow: bool = False  # set aside
    received: int = 0  # pairs so far
    since: float = field(default_factory=time.monotonic)  # when it was started, got its chunk, or last replied
    pairs: deque[int] = field(default_factory=deque)  # positions in the batch, not answered; it is at the first


class Batch:
    """The unfinished part of one call."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.verdicts = [Verdict.ERROR] * len(pairs)
        self.open = len(pairs)
        self.queue = deque(range(len(pairs)))
        self.suspects: deque[int] = deque()
        self.blamed: set[int] = set()

    @property
    def waiting(self) -> int:
        """Number of pairs that no worker has."""
        return len(self.queue) + len(self.suspects)

    def take(self, most: int) -> list[int]:
        """Return the next pairs, at most so many; a suspect comes alone."""
        if self.suspects:
            return [self.suspects.popleft()]
        return [self.queue.popleft() for _ in range(min(most, len(self.queue)))]

    def settle(self, index: int, verdict: Verdict) -> None:
        """Record the verdict on a pair."""
        self.verdicts[index] = verdict
        self.open -= 1

    def blame(self, index: int) -> None:
        """Give a pair at which a worker died a second chance, or settle it."""
        if index in self.blamed:
            self.settle(index, Verdict.ERROR)
        else:
            self.blamed.add(index)
            self.suspects.append(index)

    def recall(self, worker: Worker, keep: int = 0) -> None:
        """Put all but the first ``keep`` pairs of a worker back into the queue."""
        while len(worker.pairs) > keep:
            self.queue.appendleft(worker.pairs.pop())


class WorkerPool:
    """At most ``workers`` processes that compare, and ``SPARES`` more that hold slow pairs.

    ``deadline_s`` is the processor time for one pair; ``compare`` is the ``module:function`` that decides on one;
    ``memory_mb`` is the address space of a worker, in MiB.
    """

    def __init__(self, workers: int, deadline_s: float, memory_mb: int, compare: str = EQUIVALENCE) -> None:
        self.compare = compare
        self.size, self.deadline_s, self.memory_mb = workers, deadline_s, memory_mb
        self.wall_s = max(LEAST_BACKSTOP_S, BACKSTOP * deadline_s)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may close it in the middle of a batch
        self._busy = False
        self._era = object()  # until `close`
        self._server: Server | None = None
        self._workers: dict[int, Worker] = {}  # by the file number of the link
        self._started = self._failed_starts = 0

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return correct, wrong, error or timeout for each pair, in order. Threads take turns.

        Raises:
            RuntimeError: No worker could be started, or `close` was called before the batch was done.
        """
        if self._pid != os.getpid():  # after a fork the processes are the parent's, and its lock may never open
            self._begin()
        era = self._era
        with self._lock:
            if self._busy:
                raise RuntimeError("`judge` must not be called from a signal handler that interrupted it.")
            batch = Batch(pairs)
            try:
                self._busy = True
                while batch.open and era is self._era:
                    self._staff(batch)
                    self._feed(batch)
                    self._listen(batch)
                    self._expire(batch)
            except RuntimeError:
                if era is self._era:  # else it failed to start what `close` had ended, which is reported below
                    raise
            finally:  # an interrupted batch leaves replies that the next one would take for its own
                self._busy = False
                for worker in [worker for worker in self._workers.values() if worker.pairs]:
                    self._end(worker)
                if era is not self._era:
                    self._end_all()
        if batch.open:
            raise RuntimeError(f"`close` was called before the batch was done: {batch.open} pairs have no verdict.")
        return batch.verdicts

    def close(self) -> None:
        """End all processes, in the middle of a batch too; a later batch starts new ones. Any thread may call it."""
        if self._pid != os.getpid():
            return
        self._era = object()
        if (server := self._server) is not None:
            server.stop()  # its workers go with it, which wakes a batch that waits for them
        with self._lock:
            if not self._busy:  # a batch that is interrupted by this thread ends them itself
                self._end_all()

    def _end_all(self) -> None:
        for worker in list(self._workers.values()):
            worker.link.close()
        self._workers.clear()
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _staff(self, batch: Batch) -> None:
        """Start the workers that are missing for the pairs that wait."""
        prompt = [worker for worker in self._workers.values() if not worker.slow]
        wanted = min(self.size, batch.waiting + sum(bool(worker.pairs) for worker in prompt)) - len(prompt)
        for _ in range(min(wanted, self.size + SPARES - len(self._workers))):
            if self._server is None or self._server.gone():
                self._server = Server(self.compare, self.memory_mb, self.deadline_s, self.wall_s)
            ours, theirs = socket.socketpair()
            ours.settimeout(_START_S)
            self._started += 1
            self._workers[ours.fileno()] = Worker(self._server, self._started, ours)
            with theirs:
                self._server.send(far.FORK, self._started, theirs)

    def _feed(self, batch: Batch) -> None:
        """Give pairs to the workers that have none."""
        for worker in [worker for worker in self._workers.values() if worker.ready and not worker.pairs]:
            if worker.received >= PAIRS_PER_WORKER or _readable(worker.link):  # one without pairs can only have ended
                self._end(worker)
                continue
            chunk = batch.take(max(1, min(CHUNK, batch.waiting // (2 * self.size))))
            if not chunk:
                return
            worker.pairs.extend(chunk)
            worker.received += len(chunk)
            worker.since = time.monotonic()
            try:  # it reads the whole line before it begins, so this does not wait for a pair
                worker.link.sendall(json.dumps([batch.pairs[index] for index in chunk]).encode() + b"\n")
            except OSError:
                self._lost(worker, batch)

    def _listen(self, batch: Batch) -> None:
        """Wait until a worker replies or something is due, and read what came."""
        poll = select.poll()
        for number in self._workers:
            poll.register(number, select.POLLIN)
        wait = min(map(self._due, self._workers.values()), default=0.0) - time.monotonic()
        for number, _ in poll.poll(1000.0 * max(0.0, min(wait, 60.0))):
            worker = self._workers[number]
            try:
                replies = worker.link.recv(4096)
            except OSError:
                replies = b""
            if not replies:
                self._lost(worker, batch)
                continue
            if not (replies := replies.replace(far.HEAVY, b"")):
                continue
            worker.since = time.monotonic()
            if not worker.ready:
                worker.ready, self._failed_starts, replies = True, 0, replies[1:]
            for reply in replies[: len(worker.pairs)]:  # a slow one may have gone on to pairs that were taken back
                batch.settle(worker.pairs.popleft(), _VERDICTS[reply])
            if worker.slow or replies.endswith(far.LATE):
                batch.recall(worker)
                self._end(worker)

    def _due(self, worker: Worker) -> float:
        """Return the monotonic time at which a worker has to be looked at, whatever it sends."""
        if worker.ready and not worker.pairs:
            return float("inf")
        return worker.since + (_START_S if not worker.ready else self.wall_s if worker.slow else PATIENCE_S)

    def _expire(self, batch: Batch) -> None:
        """Set aside the workers that are slow, and end those that do not get on at all."""
        now = time.monotonic()
        for worker in [worker for worker in self._workers.values() if now >= self._due(worker)]:
            if not worker.ready:
                self._lost(worker, batch)
            elif worker.slow:
                index = worker.pairs.popleft()
                _log.warning(
                    "No result after %.0f s of wall time, though below %g s of processor time, for %.80r and %.80r: "
                    "the comparison sleeps, or the machine is overloaded; the verdict is `error`.",
                    *(self.wall_s, self.deadline_s, *batch.pairs[index]),
                )
                batch.settle(index, Verdict.ERROR)
                self._end(worker)
            else:
                worker.slow = True
                batch.recall(worker, keep=1)

    def _lost(self, worker: Worker, batch: Batch) -> None:
        """Take back what a dead worker had; the pair that it was at is under suspicion."""
        if not worker.ready:
            self._failed_starts += 1
        elif worker.pairs:
            batch.blame(worker.pairs.popleft())
        batch.recall(worker)
        self._end(worker)
        if self._failed_starts >= _ATTEMPTS:
            raise RuntimeError(
                f"{_ATTEMPTS} grading workers in a row could not be started: is `memory_mb`={self.memory_mb} too "
                "little, or is the machine out of memory or processes?"
            )

    def _end(self, worker: Worker) -> None:
        """Part with a worker, whatever it is doing."""
        self._workers.pop(worker.link.fileno(), None)
        worker.link.close()
        worker.pairs.clear()
        worker.server.send(far.KILL, worker.number)


def _readable(link: socket.socket) -> bool:
    poll = select.poll()
    poll.register(link, select.POLLIN)
    return bool(poll.poll(0))
