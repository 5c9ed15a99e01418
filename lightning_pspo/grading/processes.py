"""Worker processes that compare answers: none of them can hang a batch.

`WorkerPool.judge` sends a batch to a server (`worker.Server`), which hands its pairs to workers one at a time. The
kernel ends a worker that is over the deadline of a pair, processor time of the worker alone, so that no verdict depends
on what else the machine does, and a fork takes its place. A pair without a verdict after ``BACKSTOP`` deadlines of wall
time, because it sleeps, is an error, and a warning says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from lightning_pspo.grading import worker as far

_log = logging.getLogger(__name__)

EQUIVALENCE = "lightning_pspo.grading.equivalence:equivalent"
BACKSTOP, LEAST_BACKSTOP_S = 60.0, 60.0  # wall time for one pair: so many deadlines, and at least so many seconds

_START_S, _CHECK_S = 300.0, 1.0
_ATTEMPTS = 3  # at a batch at which the server is ended from outside


class Verdict(StrEnum):
    """How a completion was judged."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    ERROR = "error"
    TIMEOUT = "timeout"


_VERDICTS = {ord(verdict[0]): verdict for verdict in Verdict} | {far.ASLEEP[0]: Verdict.ERROR}


class Server:
    """A running `worker.main`, which may still be starting."""

    def __init__(self, *arguments: object) -> None:
        self.control, theirs = socket.socketpair()
        self.control.settimeout(_CHECK_S)
        self.ready = False
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server runs
        code = "from lightning_pspo.grading.worker import main; main()"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(os.getpid()), *map(str, arguments)],  # -P: nothing from here
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.output,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                process_group=0,  # Ctrl-C is for the owner
            )

    def failure(self) -> RuntimeError:
        """End it, and return why it could not do its work."""
        self.close()
        self.output.seek(0)
        last = self.output.read().decode(errors="replace").strip().rpartition("\n")[2]
        return RuntimeError(f"The grading workers could not be started (exit {self.process.returncode}): {last}")

    def judge(self, pairs: Sequence[tuple[str, str]]) -> bytes:
        """Return a letter for each pair; fewer if it ended before.

        Raises:
            RuntimeError: It did not start; the message has the last line of its output.
        """
        letters, request = b"", memoryview(json.dumps(pairs).encode() + b"\n")
        with contextlib.suppress(OSError):
            self.ready = self.ready or self._patiently(self.control.recv, 1, _START_S) == far.READY
            while self.ready and request:
                request = request[self._patiently(self.control.send, request) :]
            while self.ready and len(letters) < len(pairs) and (part := self._patiently(self.control.recv, 1 << 16)):
                letters += part
        if not self.ready:
            raise self.failure()
        return letters

    def _patiently(self, call: Callable[[Any], Any], argument: object, seconds: float = math.inf) -> Any:
        """Call the socket until it is done, or the server has ended: a fork of this process may hold its end open."""
        until = time.monotonic() + seconds
        while True:
            try:
                return call(argument)
            except TimeoutError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise

    def gone(self) -> bool:
        """Return whether it died or was closed; between batches it sends nothing but its end."""
        ended = self.control.fileno() < 0 or self.process.poll() is not None
        return ended or bool(far.ready([self.control], 0.0))

    def stop(self) -> None:
        """Have it end, and with it its workers, without waiting for that; any thread may call this."""
        if not self.ready:  # it does not read its socket yet, and has no workers
            self.process.kill()
        with contextlib.suppress(OSError):  # it is closed, or the server is gone
            self.control.shutdown(socket.SHUT_RDWR)  # a fork of this process may hold it: closing alone does nothing

    def close(self) -> None:
        """End it, and with it its workers."""
        self.stop()
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5.0)
        self.process.kill()  # does nothing to one that has ended
        self.process.wait()


class WorkerPool:
    """At most ``workers`` processes that compare.

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

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return correct, wrong, error or timeout for each pair, in order. Threads take turns.

        Raises:
            RuntimeError: No worker could be started, or `close` was called before the batch was done.
        """
        if not pairs:
            return []
        if self._pid != os.getpid():  # after a fork the processes are the parent's, and its lock may never open
            self._begin()
        era, letters = self._era, b""
        with self._lock:
            if self._busy:
                raise RuntimeError("`judge` must not be called from a signal handler that interrupted it.")
            self._busy = True
            try:
                letters = self._letters(pairs, era)
            except RuntimeError:
                if era is self._era:  # else it failed to start what `close` had ended, which is reported below
                    raise
            finally:
                self._busy = False
                if len(letters) < len(pairs) or era is not self._era:
                    self._end()  # an interrupted batch leaves replies that the next one would take for its own
        if len(letters) < len(pairs):
            raise RuntimeError(f"`close` was called before the batch was done: {len(pairs)} pairs have no verdict.")
        for (extracted, answer), letter in zip(pairs, letters, strict=True):
            if letter == far.ASLEEP[0]:
                _log.warning(
                    "No result after %.0f s of wall time, though below %g s of processor time, for %.80r and %.80r: "
                    "the comparison sleeps, or the machine is overloaded; the verdict is `error`.",
                    *(self.wall_s, self.deadline_s, extracted, answer),
                )
        return [_VERDICTS[letter] for letter in letters]

    def _letters(self, pairs: Sequence[tuple[str, str]], era: object) -> bytes:
        """Return what the server says of each pair; fewer letters after `close`."""
        error: RuntimeError | None = None
        for _ in range(_ATTEMPTS):
            if self._server is None or self._server.gone():
                self._end()
                limits = (self.memory_mb << 20, self.deadline_s, self.wall_s)
                self._server = Server(self.compare, self.size, *limits)  # where `close` finds it while it starts
            letters = self._server.judge(pairs) if era is self._era else b""
            if len(letters) == len(pairs) or era is not self._era:
                return letters
            error = self._server.failure()
            if self._server.process.returncode >= 0:  # it gave up; a signal may have been meant for another
                break
        raise error or RuntimeError

    def close(self) -> None:
        """End all processes, in the middle of a batch too; a later batch starts new ones. Any thread may call it."""
        if self._pid != os.getpid():
            return
        self._era = object()
        if (server := self._server) is not None:
            server.stop()  # its workers go with it, which wakes a batch that waits for them
        with self._lock:
            if not self._busy:  # a batch that is interrupted by this thread ends them itself
                self._end()

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
