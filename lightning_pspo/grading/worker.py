"""The far side of `processes.WorkerPool`: a server that gives pairs to workers, and what a worker does.

The server is a fresh interpreter with one thread and no torch. It imports what comparing needs once, so that a worker
costs a fork of some milliseconds, and being the parent it learns from the kernel how a worker ended. It ends when its
socket does, or when its owner is gone, and takes the workers with it; they also end with it by a signal of the kernel
(on Linux), so that nothing survives a ``kill -9`` of any of them. Model text is compared, never evaluated.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from lightning_pspo.processes import end_with_parent

READY = b"+"
"""First byte of the server and of every worker."""
EQUIVALENT, DIFFERENT, FAILED, LATE, ASLEEP = b"c", b"w", b"e", b"t", b"s"
"""What became of a pair: the first letters of the verdicts, and one more."""

_ENDS: dict[int, bytes] = {signal.SIGPROF: LATE, signal.SIGALRM: ASLEEP}  # signals of the timers that a pair runs under
_ATTEMPTS = 3
_OWNER_CHECK_S = 1.0
_WARM_UP = (  # kinds of answers whose first comparison takes long: imports and tables that every worker then shares
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"),
    ("x^2 - 2x + 1", "(x - 1)^2"),
    ("x > 3", r"(3, \infty)"),
    ("y = 2x + 3", "2x - y + 3 = 0"),
    (r"\log_2 x + 1", r"\ln 5"),
)


def main() -> None:
    """Serve the socket that stands in for standard input.

    Arguments of the command line: the owner's pid, ``module:function`` that compares a pair, the number of workers, and
    the limits of each: see `Limits`.
    """
    owner, function, size, *limits = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signum in (signal.SIGCHLD, signal.SIGALRM, signal.SIGPROF, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    module, _, name = function.partition(":")
    compare: Callable[[str, str], bool] = getattr(importlib.import_module(module), name)
    for pair in _WARM_UP:
        compare(*pair)
    gc.collect()
    gc.freeze()  # no collection in a worker touches what it shares
    control = socket.socket(fileno=0)
    server = Server(control, int(owner), compare, int(size), Limits(*map(float, limits)))
    with contextlib.suppress(ConnectionError):  # the owner is gone
        control.sendall(READY)
        server.serve()


class Limits(NamedTuple):
    """What a worker may use: bytes of address space and, for one pair, seconds of processor time and of wall time."""

    memory_bytes: float
    cpu_s: float
    wall_s: float


class Server:
    """Compares batches with at most ``size`` workers."""

    def __init__(
        self, control: socket.socket, owner: int, compare: Callable[[str, str], bool], size: int, limits: Limits
    ) -> None:
        self.control, self.owner, self.compare, self.size, self.limits = control, owner, compare, size, limits
        self.workers: dict[socket.socket, int] = {}  # with their process numbers

    def serve(self) -> None:
        """Answer each line, a JSON list of pairs, with one byte for each pair, until the owner is gone."""
        lines = self.control.makefile("rb")
        try:
            while self._readable([]) and (line := lines.readline()):
                self.control.sendall(self._judge(json.loads(line)))
        finally:
            for pid in self.workers.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _judge(self, pairs: list[list[str]]) -> bytes:
        replies, waiting = [b""] * len(pairs), deque(range(len(pairs)))
        blamed: set[int] = set()  # pairs at which a worker died: the cause may have been another, as a lack of memory
        idle, busy = list(self.workers), dict[socket.socket, int]()  # the latter with the pair that each is at
        while waiting or busy:
            while waiting and len(busy) < self.size:
                if idle and ready(idle[-1:], 0.0):  # someone ended it since its last pair
                    self._reap(idle.pop())
                    continue
                link = idle.pop() if idle else self._start()
                busy[link] = index = waiting.popleft()
                with contextlib.suppress(OSError):  # it is dead, which reading will show
                    link.sendall(json.dumps(pairs[index]).encode() + b"\n")
            for link in self._readable([*busy]):
                index = busy.pop(link)
                if reply := _received(link) or _ENDS.get(self._reap(link), FAILED * (index in blamed)):
                    replies[index] = reply
                else:
                    blamed.add(index)
                    waiting.appendleft(index)
                idle += [link] if link in self.workers else []
        return b"".join(replies)

    def _readable(self, links: list[socket.socket]) -> list[socket.socket]:
        """Wait until a worker or, between batches, the owner sends something."""
        while not (readable := ready([self.control, *links], _OWNER_CHECK_S)):
            if os.getppid() != self.owner:
                raise ConnectionError("the owner is gone")
        if links and self.control in readable:
            raise ConnectionError("the owner has closed its socket")
        return readable

    def _start(self) -> socket.socket:
        for _ in range(_ATTEMPTS):
            ours, theirs = socket.socketpair()
            with theirs, contextlib.suppress(OSError):
                server, pid = os.getpid(), os.fork()
                if pid == 0:
                    try:
                        for link in (ours, *self.workers):
                            link.close()
                        work(theirs, server, self.compare, self.limits)
                    finally:
                        os._exit(1)
                theirs.close()
                self.workers[ours] = pid
                if _received(ours) == READY:
                    return ours
                self._reap(ours)
            ours.close()
        raise SystemExit(
            f"{_ATTEMPTS} workers in a row could not be started: is `memory_mb`={self.limits.memory_bytes / 2**20:.0f} "
            "too little, or is the machine out of memory or processes?"
        )

    def _reap(self, link: socket.socket) -> int:
        """Part with a worker that has ended; return the signal that ended it, 0 for none."""
        link.close()
        return os.waitpid(self.workers.pop(link), 0)[1] & 0x7F


def ready(links: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Return the sockets that have something to read, or whose other end is closed, after at most ``seconds``."""
    poll = select.poll()
    for link in links:
        poll.register(link, select.POLLIN)
    events = dict(poll.poll(1000 * seconds))
    return [link for link in links if link.fileno() in events]


def _received(link: socket.socket) -> bytes:
    try:
        return link.recv(1)
    except OSError:
        return b""


def work(link: socket.socket, server: int, compare: Callable[[str, str], bool], limits: Limits) -> NoReturn:
    """Compare pairs until the socket closes: a line is a JSON list of two texts, the reply one byte.

    The kernel ends a worker that is over a limit of time with the timer's signal, even in the middle of a call into C.
    A lower limit of the address space that the process already has stays.
    """
    end_with_parent(server)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = int(limits.memory_bytes if hard == resource.RLIM_INFINITY else min(limits.memory_bytes, hard))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # from here on its only voice is the socket; 0 was the server's, to the owner
        os.dup2(null, stream)
    link.sendall(READY)
    for line in link.makefile("rb"):
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
        signal.setitimer(signal.ITIMER_REAL, limits.wall_s)
        try:
            reply = EQUIVALENT if compare(*json.loads(line)) else DIFFERENT
        except MemoryError:  # what it still holds would be missing for the next pair
            os._exit(1)
        except Exception:  # whatever model text does to a parser is that text's verdict
            reply = FAILED
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        link.sendall(reply)
    os._exit(0)
