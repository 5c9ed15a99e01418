"""Judge in the background: in a process of its own, or in a thread if the judge cannot be copied."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from lightning_pspo.errors import check_at_least
from lightning_pspo.judging.base import Item, Judgement
from lightning_pspo.judging.panel import Panel

_log = logging.getLogger(__name__)

NICENESS = 10
"""Niceness of the process: where cores are short it gets a tenth of the training's share."""

_END_S = 5.0
_GARBAGE = 50_000
"""Objects after which the process collects garbage; at Python's 700 that is a tenth of its work."""
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Background:
    """Scores items beside the caller, who fetches the results when it suits.

    A judge that is ``portable`` works in a process of its own; any other in a thread of this one, and so does, with a
    warning, one that claims to be portable but cannot be copied. At most ``max_pending`` items wait or are judged at a
    time; further ones are refused.
    """

    def __init__(self, panel: Panel, *, max_pending: int = 10_000) -> None:
        check_at_least("max_pending", max_pending, 1)
        self.panel, self.max_pending = panel, max_pending
        self._waiting: dict[str, Item] = {}  # by id
        self._over: str | None = None  # why nothing is judged any more
        self._results: queue.SimpleQueue[Judgement | str] = queue.SimpleQueue()
        self._worker: _Process | _Thread = self._started()

    @property
    def waiting(self) -> int:
        """Return how many items have no result that was fetched."""
        return len(self._waiting)

    def spent(self) -> dict[str, float]:
        """Return what the judge has used so far: requests, tokens, money, as far as it knows."""
        return self._worker.spent()

    def submit(self, items: Sequence[Item]) -> list[Judgement]:
        """Take items to judge, and return at once; judgements without scores are of those that are refused."""
        room = max(0, self.max_pending - len(self._waiting)) if self._over is None else 0
        for item in items[:room]:
            self._waiting[item.id] = item
            self._worker.submit(item)
        why = self._over or f"{self.max_pending} items wait already (`max_pending`)"
        return [self._without(item, f"not asked: {why}") for item in items[room:]]

    def fetch(self, wait_s: float = 0.0, *, limit: int | None = None) -> list[Judgement]:
        """Return at most ``limit`` results since the last call; wait up to ``wait_s`` seconds for unfinished items."""
        judgements: list[Judgement] = []
        end = time.monotonic() + wait_s
        while self._waiting and (limit is None or len(judgements) < limit):
            if self._over is not None:
                judgements.append(self._without(next(iter(self._waiting.values())), self._over))
            else:
                try:
                    left = end - time.monotonic()
                    result = self._results.get(timeout=left) if left > 0 else self._results.get_nowait()
                except queue.Empty:
                    break
                if isinstance(result, str):
                    self._over = result
                    continue
                judgements.append(result)
            del self._waiting[judgements[-1].id]
        return judgements

    def close(self, why: str = "not finished") -> list[Judgement]:
        """Stop, and return what is finished and, with the reason, what is not."""
        judgements = self.fetch()
        judgements += [self._without(item, why) for item in self._waiting.values()]
        self._waiting = {}
        self._worker.close()
        return judgements

    def _without(self, item: Item, reason: str) -> Judgement:
        return Judgement(id=item.id, key=self.panel.key(item), reason=reason)

    def _started(self) -> _Process | _Thread:
        judge = type(self.panel.judge)
        if judge.portable and judge.__module__ != "__main__":  # another process cannot import that
            try:
                return _Process(self.panel, self._results.put)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                _log.warning(
                    "%s is `portable`, but pickle cannot copy it (%s): it works in a thread beside the training.",
                    judge.__name__,
                    error,
                )
        return _Thread(self.panel, self._results.put)


class _Thread:
    """Scores items in a thread with an event loop, which owns the panel and calls ``deliver``."""

    def __init__(self, panel: Panel, deliver: Callable[[Judgement], None]) -> None:
        self._panel, self._deliver = panel, deliver
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        self._loop.call_soon_threadsafe(self._begin, item)

    def spent(self) -> dict[str, float]:
        return self._panel.judge.spent()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=2 * _END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=2 * _END_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _begin(self, item: Item) -> None:
        task = self._loop.create_task(self._judge(item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, item: Item) -> None:
        try:
            judgement = await self._panel.score(item)
        except Exception as error:  # a judge of the user's own may raise anything; training goes on
            reason = f"{type(error).__name__} in the judge"
            judgement = Judgement(id=item.id, key=self._panel.key(item), reason=reason)
        self._deliver(judgement)

    async def _finish(self) -> None:
        """Cancel unfinished items, then close the judge's connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._panel.judge.aclose()


class _Process:
    """Scores items in a process, so that its work does not hold up the threads of this one. It ends with its owner.

    A copy of the panel works there. ``deliver`` is called in a thread with each judgement, and at last, as a text, with
    why no more will come. A judge that cannot be copied raises PicklingError, AttributeError or TypeError.
    """

    def __init__(self, panel: Panel, deliver: Callable[[Judgement | str], None]) -> None:
        work = pickle.dumps(panel)
        self._deliver = deliver
        self._spent = panel.judge.spent()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel, theirs = socket.socketpair()
        command = "from lightning_pspo.judging.background import main; main()"
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until the process ignores them itself
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command, str(os.getpid())],  # -P: the working directory holds no modules
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
                process_group=0,  # Ctrl-C is for the owner
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._outbox.put(work)
        threading.Thread(target=self._write, name="judge", daemon=True).start()
        self._reader = threading.Thread(target=self._read, name="judge", daemon=True)
        self._reader.start()

    def submit(self, item: Item) -> None:
        self._outbox.put(pickle.dumps(item))

    def spent(self) -> dict[str, float]:
        """Return what the judge had used at its last message; after `close` that is all."""
        return self._spent

    def close(self) -> None:
        self._outbox.put(None)
        with contextlib.suppress(OSError):  # it is closed
            self._channel.shutdown(socket.SHUT_WR)  # a fork of this process may hold it open
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(_END_S)  # the last message is what the judge has used
        self._channel.close()

    def _write(self) -> None:
        with contextlib.suppress(OSError), self._channel.makefile("wb") as file:  # the reader reports the end
            while (message := self._outbox.get()) is not None:
                file.write(message)
                if self._outbox.empty():
                    file.flush()

    def _read(self) -> None:
        try:
            with self._channel.makefile("rb") as file:
                while True:
                    judgement, self._spent = pickle.load(file)
                    if judgement is not None:
                        self._deliver(judgement)
        except (EOFError, OSError, pickle.UnpicklingError):
            why = f"the judge's process ended unexpectedly, with status {self._process.wait()}"
        except Exception as error:  # what an object of a user's class may raise when it is put together again
            self._process.kill()
            why = f"what the judge's process sent cannot be read: {type(error).__name__}"
        self._deliver(why)


def main() -> None:
    """Work in the process: standard input is the channel, the argument its owner's process id."""
    os.nice(NICENESS)
    gc.set_threshold(_GARBAGE)
    for number in _IGNORED:  # a whole job may be told to end; the owner decides what that means
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    threading.Thread(target=_end_without, args=(int(sys.argv[1]),), daemon=True).start()
    channel = socket.socket(fileno=os.dup(0))
    inbox, outbox = channel.makefile("rb"), channel.makefile("wb")
    panel: Panel = pickle.load(inbox)

    def deliver(judgement: Judgement | None) -> None:
        try:
            outbox.write(pickle.dumps((judgement, panel.judge.spent())))
            outbox.flush()
        except OSError:
            return  # nobody reads any more
        except Exception:  # in `spent` of a judge of the user's own
            traceback.print_exc()
            os._exit(1)  # the owner then knows that nothing more will come

    worker = _Thread(panel, deliver)
    try:
        while True:
            worker.submit(pickle.load(inbox))
    except (EOFError, OSError):
        worker.close()
        panel.cache.close()
        deliver(None)
    os._exit(0)  # at once: the owner waits


def _end_without(owner: int) -> None:
    """End with the owner; the channel stays open as long as a fork of the owner holds it."""
    while os.getppid() == owner:
        time.sleep(1.0)
    os._exit(0)
