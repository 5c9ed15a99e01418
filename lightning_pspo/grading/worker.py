"""The far side of `processes.WorkerPool`: a server that forks workers on request, and what a worker does.

The server is a fresh interpreter with one thread and no torch. It imports what comparing needs once, so that a worker
costs a fork of some milliseconds, and it is never stuck: it only forks, kills and reaps. It ends when its socket does,
or when its owner is gone, and takes the workers with it. The workers end with it by a signal of the kernel (on Linux),
so that nothing survives a ``kill -9`` of any of them. Model text is compared, never evaluated.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import NoReturn

COMMAND = struct.Struct("!cI")
"""A command of the owner: ``FORK`` (a worker, on the socket that comes along) or ``KILL``, and the worker's number."""
FORK, KILL = b"f", b"k"

READY = b"+"
"""First byte of the server and of every worker. A worker then sends one of these for each pair, in order:"""
EQUIVALENT, DIFFERENT, FAILED = b"1", b"0", b"e"
LATE, HEAVY = bytes([signal.SIGPROF]), bytes([signal.SIGVTALRM])
"""What the interpreter sends when a timer of processor time runs out, even in the middle of a call into C: the worker's
last word on a pair that is over its deadline, and no word on one that only goes on behind the others."""

_Run = Callable[[socket.socket, int], NoReturn]  # what a worker does with its socket and the server's pid
_OWNER_CHECK_S = 1.0
_PATIENCE_CPU_S = 0.2  # of processor time: other load on the machine must not make a pair a heavy one
_HEAVY_NICE = 5  # a third of the weight
_IDLE_S = 86_400.0  # after which a worker without pairs ends; its socket needs a limit, so as not to block a signal
_SET_PDEATHSIG = 1
_WARM_UP = (  # kinds of answers whose first comparison takes long: imports and tables that every worker then shares
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"),
    ("x^2 - 2x + 1", "(x - 1)^2"),
    ("x > 3", r"(3, \infty)"),
    ("y = 2x + 3", "2x - y + 3 = 0"),
    (r"\log_2 x + 1", r"\ln 5"),
)


def main() -> None:
    """Serve the socket that stands in for standard input.

    Arguments of the command line: the owner's pid, ``module:function`` that compares a pair, the address space of a
    worker in bytes, and the seconds of processor time and of wall time for one pair: see `work`.
    """
    owner, function, *limits = sys.argv[1:]
    memory_bytes, cpu_s, wall_s = map(float, limits)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signum in (signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    module, _, name = function.partition(":")
    compare: Callable[[str, str], bool] = getattr(importlib.import_module(module), name)
    for pair in _WARM_UP:
        compare(*pair)
    gc.collect()
    gc.freeze()  # no collection in a worker touches what it shares
    control = socket.socket(fileno=0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # from here on the only voice is the socket
        os.dup2(null, stream)
    try:
        control.sendall(READY)
        serve(control, int(owner), lambda link, server: work(link, server, compare, int(memory_bytes), cpu_s, wall_s))
    except ConnectionError:  # the owner is gone
        return


def serve(control: socket.socket, owner: int, run: _Run) -> None:
    """Carry out commands until the parent is not ``owner`` any more or is gone; then end every worker."""
    workers: dict[int, int] = {}  # number -> pid, until it is reaped: so long its pid cannot be anyone else's
    try:
        while True:
            readable, _, _ = select.select([control], [], [], _OWNER_CHECK_S)
            if readable:
                data, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1)
                if len(data) < COMMAND.size:
                    return
                letter, number = COMMAND.unpack(data)
                if letter == FORK:
                    _fork(workers, number, descriptors[0], control, run)
                elif number in workers:
                    os.kill(workers[number], signal.SIGKILL)
            elif os.getppid() != owner:
                return
            _reap(workers)
    finally:
        for pid in workers.values():
            os.kill(pid, signal.SIGKILL)
        for pid in workers.values():
            os.waitpid(pid, 0)


def _fork(workers: dict[int, int], number: int, descriptor: int, control: socket.socket, run: _Run) -> None:
    """Start a worker on ``descriptor``; after a failed fork the owner sees its socket close without a word."""
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(descriptor)
        return
    if pid == 0:
        try:
            os.dup2(1, control.detach())  # the control socket is the server's alone
            run(socket.socket(fileno=descriptor), server)
        finally:
            os._exit(1)
    workers[number] = pid
    os.close(descriptor)


def _reap(workers: dict[int, int]) -> None:
    while workers:
        ended, _ = os.waitpid(-1, os.WNOHANG)
        if ended == 0:
            return
        for number in [number for number, pid in workers.items() if pid == ended]:
            del workers[number]


def work(
    link: socket.socket,
    server: int,
    compare: Callable[[str, str], bool],
    memory_bytes: int,
    cpu_s: float,
    wall_s: float,
) -> NoReturn:
    """Compare pairs until the socket closes: a line is a JSON list of pairs, the reply one byte for each.

    A pair that uses ``cpu_s`` seconds of this process's time, user and system, is ``LATE``. The kernel ends a worker
    that is at one pair for ``wall_s``, whoever is left to watch it. A lower limit of the address space that the process
    already has stays.
    """
    _die_with(server)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    link.settimeout(_IDLE_S)
    signal.set_wakeup_fd(link.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGPROF, lambda *_: os._exit(1))
    signal.signal(signal.SIGVTALRM, lambda *_: os.nice(_HEAVY_NICE))  # it is replaced after a heavy pair
    timers = ((signal.ITIMER_PROF, cpu_s), (signal.ITIMER_VIRTUAL, _PATIENCE_CPU_S), (signal.ITIMER_REAL, wall_s))
    link.sendall(READY)
    for line in link.makefile("rb"):
        for extracted, answer in json.loads(line):
            for timer, seconds in timers:
                signal.setitimer(timer, seconds)
            exhausted = False
            try:
                reply = EQUIVALENT if compare(extracted, answer) else DIFFERENT
            except Exception as error:  # whatever model text does to a parser is that text's verdict
                reply, exhausted = FAILED, isinstance(error, MemoryError)
            for timer, _ in timers:  # before the reply, after which a signal would be taken for the next pair's
                signal.setitimer(timer, 0)
            link.sendall(reply)
            if exhausted:  # what it still holds would be missing for the next pair
                os._exit(1)
    os._exit(0)


def _die_with(server: int) -> None:
    """Have the kernel end this process when ``server`` ends; on systems other than Linux its last act must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it was faster
        os._exit(1)
