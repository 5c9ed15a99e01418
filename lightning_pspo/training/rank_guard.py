"""End the processes of a run together: when one fails, the others follow, and its error is reported first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import NoReturn

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lightning_pspo.processes import end_with_parent

_PARENT = "LIGHTNING_PSPO_PARENT"
_POLL_S = 0.2
_TEARDOWN_S = 20.0
_PATIENCE_S = 15.0  # how long a rank that lost the others waits for the error of the one that failed
_STOPPED = (0, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")


def follow_launcher() -> None:
    """Let this process end with the one that started it as a rank: Lightning's rank zero, or torchrun's agent."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    elif "LOCAL_RANK" in os.environ and _PARENT in os.environ and sys.platform == "linux":
        end_with_parent(int(os.environ[_PARENT]))
    os.environ[_PARENT] = str(os.getpid())  # for the ranks that Lightning starts from here


class RankGuard(Callback):
    """Reports a rank's failure at once and ends the run.

    A rank that fails while the others wait for it would leave them waiting: gloo's until their connection breaks,
    NCCL's for minutes. So a rank that fails prints its traceback and ends without waiting for anyone; rank zero watches
    the processes that it started and ends when one of them has failed, and they end with it. The error that began it is
    reported first, not the lost connections that follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trainer: Trainer | None = None  # of the run, as soon as it is set up
        self.interrupted = False  # whether the user has pressed Ctrl-C
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leaving = threading.Lock()

    @property
    def alone(self) -> bool:
        """Whether the run has a single rank."""
        return self.trainer is None or self.trainer.world_size == 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the other ranks, where this process has started them."""
        self.trainer = trainer
        if self._processes or not (started := list(getattr(trainer.strategy.launcher, "procs", []))):
            return
        self._processes = started
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                thread._child_processes = []  # Lightning's would kill this process before it can report the error
        threading.Thread(target=self._watch, name="rank-guard", daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note an interruption; make sure that the end of a failed rank does not wait for the others."""
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if isinstance(exception, Exception) and not self.alone:
            late = threading.Timer(_TEARDOWN_S, self.fail, args=(exception,))
            late.daemon = True
            late.start()

    def fail(self, error: Exception) -> NoReturn:
        """Report an error other than bad input, in a run of several ranks, and end this process."""
        assert self.trainer is not None
        rank = self.trainer.global_rank
        if lost_connection(error) and (ended := self._ended()):
            self.leave(1, self._line(ended[0]))  # with a status that looks like a success
        get_error_handler().record_exception(error)  # for torchrun's own report
        self.leave(1, f"error on rank {rank}:\n{''.join(traceback.format_exception(error))}")

    def leave(self, status: int, message: str = "") -> NoReturn:
        """End this process at once, and the ranks that it started: nothing waits for a collective of theirs."""
        self._leaving.acquire()  # a second caller has nothing to add
        if message:
            sys.stderr.write(message.rstrip("\n") + "\n")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for process in self._processes:
            process.kill()
        os._exit(status)

    def _ended(self) -> list[subprocess.Popen[bytes]]:
        """Wait until one of the ranks that this process started has ended; return it, or none after SIGTERM or 15 s.

        Rank zero's guard may end this process first, as does `_watch` here when that rank has failed.
        """
        asked = threading.Event()
        if threading.current_thread() is threading.main_thread():  # torchrun's agent asks; nothing is left to finish
            signal.signal(signal.SIGTERM, lambda *_: asked.set())
        until = time.monotonic() + _PATIENCE_S
        while not (ended := [process for process in self._processes if process.poll() is not None]):
            if asked.wait(_POLL_S) or time.monotonic() > until:
                return []
        time.sleep(5 * _POLL_S)
        return ended

    def _watch(self) -> None:
        while not (failed := [process for process in self._processes if process.poll() not in (None, *_STOPPED)]):
            time.sleep(_POLL_S)
        status = failed[0].returncode
        self.leave(status if status in (2, 128 + signal.SIGINT) else 1, self._line(failed[0]))

    def _line(self, ended: subprocess.Popen[bytes]) -> str:
        rank = 1 + self._processes.index(ended)
        return f"error: rank {rank} (process {ended.pid}) {_end(ended.returncode)}"


def lost_connection(error: BaseException) -> bool:
    """Return whether an error only says that another rank is gone.

    >>> lost_connection(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:30311"))
    True
    >>> lost_connection(ValueError("no"))
    False
    """
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(word in text for word in _LOST)


def _end(status: int) -> str:
    """Return how a rank ended, in words."""
    if status >= 0:
        return f"ended with status {status}; see its own error, if any, above: the run ends."
    name = signal.Signals(-status).name
    cause = ", as by an operator or for lack of memory" if -status == signal.SIGKILL else ""
    return f"was killed by signal {-status} ({name}){cause}: the run ends."
