"""Work that waits for a server, which may stall, or lead astray whoever stores what it sends. Needs no torch."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import thread as pools
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import unquote
from weakref import WeakSet

from lightning_pspo.errors import InputError

T = TypeVar("T")

STALL_SECONDS = 60.0
"""Longest time in which nothing more of a file may arrive."""
CHUNK = 2**20
"""Bytes that arrive before a file on the disk grows; the hub library's own are ten times as many."""
NAME = "waits for a server"
"""Of the threads that do."""

_MAX_LISTING = 2**28  # bytes of an answer that is no file, and fills the memory
_NAMES = ("etag", "x-linked-etag", "x-repo-commit", "x-xet-hash")
_LEADS_OUT = re.compile(r"/\.\.(/|$)|/resolve//")  # of an address with a revision, which is taken for a path, too
_under_way: dict[threading.Thread, float] = {}  # who waits for an answer, and when it has last got on


_abandoned = WeakSet[threading.Thread]()  # who asks no server again


class _Work(threading.Thread):
    """A thread that waits for a server until it is abandoned.

    ``refusal`` is the status of its last answer if bad, ``received`` the bytes of all.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True, name=NAME)
        self.work, self.result = work, Future[Any]()
        self.refusal, self.received, self.before = "", 0, set(pools._threads_queues)

    def run(self) -> None:
        try:
            self.result.set_result(self.work())
        except BaseException as error:
            self.result.set_exception(error)
        finally:
            _under_way.pop(self, None)  # a request that was not answered leaves its entry

    def abandon(self, reason: str) -> NoReturn:
        from huggingface_hub import close_session

        # its own pools are of daemons as well, but the interpreter waits for those that it knows before it ends
        workers = [worker for worker in pools._threads_queues if worker.daemon and worker not in self.before]
        for worker in (self, *workers):
            _abandoned.add(worker)
            _under_way.pop(worker, None)
            cast(Any, pools._threads_queues).pop(worker, None)
        close_session()  # ends what still arrives
        raise TimeoutError(f"{reason}{self.refusal and f'; the last answer was {self.refusal}'}")


def watched(work: Callable[[], T], seconds: float, *folders: Path, most: float = float("inf")) -> T:
    """Do work that waits for a server, in a thread that is left behind if it stalls.

    A client's own limit counts from byte to byte and anew at each retry, so that a server can hold it for hours.

    Args:
        work: The work.
        seconds: Longest time in which nothing may arrive, in seconds.
        folders: Where the hub's library writes what arrives.
        most: Most bytes that may arrive, whatever other processes write to the folders.

    Raises:
        TimeoutError: It has stalled, or too much has arrived.
    """
    _check_answers()
    thread, reached, since = _Work(work), _arrived(folders), time.monotonic()
    thread.start()
    while not wait([thread.result], min(1.0, seconds / 4)).done:
        if thread.received > most:
            thread.abandon(f"more than {most:,} bytes have arrived")
        if (now := _arrived(folders)) > reached:
            reached, since = now, time.monotonic()
        elif time.monotonic() - since >= seconds:
            thread.abandon(f"nothing more has arrived in {seconds:g} s")
    result: T = thread.result.result()
    return result


def watched_upload(work: Callable[[], T], seconds: float) -> T:
    """Do work that sends files, in a thread that is left behind if a request of it stalls.

    Args:
        work: The work.
        seconds: Longest time in which a request may be neither taken nor answered, in seconds.

    Raises:
        TimeoutError: It has stalled.
    """
    _check_answers()
    thread, start = _Work(work), time.monotonic()
    thread.start()
    while not wait([thread.result], min(1.0, seconds / 4)).done:
        since = [got_on for got_on in _under_way.copy().values() if got_on >= start]  # not of an earlier failure
        if time.monotonic() - min(since, default=float("inf")) >= seconds:
            thread.abandon(f"a request has not got on in {seconds:g} s")
    result: T = thread.result.result()
    return result


def _arrived(folders: tuple[Path, ...]) -> int:
    """Return a number that grows with every file in the folders and with its size."""
    sizes = [0]
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # renamed meanwhile
                sizes.append(path.lstat().st_size)
    return len(sizes) + sum(sizes)


@functools.cache
def _check_answers() -> None:
    """Let every request of the hub's library, in any thread, pass the checks below."""
    import httpx2
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http

    class Watched(httpx2.SyncByteStream):
        """What a request sends or an answer brings, at most so many bytes."""

        def __init__(self, stream: Any, most: float, is_answer: bool) -> None:
            self.stream, self.left, self.is_answer = stream, most, is_answer

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self.stream:
                self.left -= len(chunk)
                if self.left < 0:
                    raise InputError("the hub's answer has no end")
                thread = threading.current_thread()
                if not self.is_answer:
                    _under_way[thread] = time.monotonic()
                elif isinstance(thread, _Work):
                    thread.received += len(chunk)
                yield chunk

        def close(self) -> None:
            if self.is_answer:
                _under_way.pop(threading.current_thread(), None)
            self.stream.close()

    def before(request: Any) -> None:
        _check_request(request)
        request.stream = Watched(request.stream, float("inf"), False)

    def after(response: Any) -> None:
        path = str(response.request.url).removeprefix(constants.ENDPOINT)  # a mirror's own address may have /api/
        is_listing = response.request.method == "GET" and "/api/" in path and "/resolve/" not in path
        response.stream = Watched(response.stream, _MAX_LISTING if is_listing else float("inf"), True)
        _check_answer(response)

    make = _http._GLOBAL_CLIENT_FACTORY

    def checked() -> Any:
        client = make()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], before], "response": [after, *hooks["response"]]}
        client.timeout = 2 * STALL_SECONDS  # where the library sets none, and whose threads outlive the work
        return client

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    set_client_factory(checked)


def _check_request(request: Any) -> None:
    """Refuse a request of a thread that nobody waits for, or of a revision that would be stored out of the cache."""
    if (thread := threading.current_thread()) in _abandoned:
        raise TimeoutError("nobody waits for it any more")
    if _LEADS_OUT.search(address := unquote(request.url.raw_path.decode("ascii"))):
        raise InputError(f"the hub leads to {address!r:.100}, which is out of its cache")
    _under_way[thread] = time.monotonic()


def _check_answer(response: Any) -> None:
    """Refuse names that lead out of the cache: the hub's library stores what it is sent under the server's names."""
    thread = threading.current_thread()
    _under_way[thread] = time.monotonic()
    if isinstance(thread, _Work):
        is_bad = response.status_code >= 400 and response.status_code != 404  # many a file may be missing
        thread.refusal = f"{response.status_code} {response.reason_phrase}".strip() if is_bad else ""
    for header in _NAMES:
        value = response.headers.get(header, "")
        for name in (value, value.lstrip("W/").strip('"')):  # as it is, and as the library reads it
            if os.path.isabs(name) or ".." in name.split("/"):
                raise InputError(f"the hub names a file {name!r:.100}, which is out of its cache")
