"""A user's function as a reward, with a time limit for each row."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import math
import re
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, get_args

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.rewards.base import Reward, as_number, check_finite, row_name
from lightning_pspo.types import Sample

_log = logging.getLogger(__name__)

OnError = Literal["stop", "count"]
MAX_STUCK = 32
"""Calls that never returned, each of which holds a thread; one more stops the run in any case."""

_GRACE_S = 5.0
_SIGNALS = re.compile(r"(?=.*\bsignal\b).*thread", re.DOTALL)  # Python's words, and math-verify's
_OTHER_TYPES = {"str", "int", "float", "bool", "list", "dict", "tuple"}
_BATCH_ARGUMENTS = {"prompts", "completions", "completion_ids", "prompt", "completion"}


class FunctionReward(Reward):
    """A user's function of one sample: ``def f(sample) -> float``, or ``async def`` with the same signature.

    A function is called row after row in a thread of its own, because only so can it be left behind when it takes too
    long; a coroutine function runs for up to ``concurrency`` rows at once, in one event loop that lasts as long as this
    object, so that a client of a server may be kept between calls. Its term is logged by the function's name.

    Args:
        function: The function, or its name: ``package.module.function`` or ``package.module:function``.
        timeout_s: Seconds for one row, above 0. None: no limit, and a function that is not a coroutine function runs in
            the caller's thread, which one that uses the rank's GPU needs.
        on_error: Treatment of an exception, a time-out, or a value that is not a finite number: ``stop`` ends the run
            and names the row; ``count`` gives the row ``error_value``, adds it to ``errors``, and warns once a call.
        error_value: The value of such a row.
        concurrency: Rows at once of a coroutine function, at least 1.

    Attributes:
        errors: Rows that were counted so far, on this rank.

    Raises:
        InputError: The function cannot be found or called with one sample, or a setting is out of range; when called,
            for a failed row under ``stop``, or if too many calls never returned.

    >>> from lightning_pspo.grading import grade
    >>> from lightning_pspo.types import Problem
    >>> def polite(sample: Sample) -> float:
    ...     return float("please" in sample.completion)
    >>> sample = Sample(Problem("p", "2 + 2?", "4"), "4, please", grade("4", "4"), False, 5)
    >>> FunctionReward(polite).breakdown([sample])
    ([1.0], {'polite': [1.0]})
    """

    def __init__(
        self,
        function: str | Callable[[Sample], Any],
        *,
        timeout_s: float | None = 30.0,
        on_error: OnError = "stop",
        error_value: float = 0.0,
        concurrency: int = 32,
    ) -> None:
        self.function = _find(function) if isinstance(function, str) else function
        _check_function(self.function)
        if timeout_s is not None and not 0.0 < timeout_s < math.inf:
            raise InputError(f"`timeout_s` must be finite and above 0, or null, got {timeout_s}.")
        if on_error not in get_args(OnError):
            raise InputError(f"`on_error` must be one of {', '.join(get_args(OnError))}, got {on_error!r}.")
        check_finite("error_value", error_value)
        check_at_least("concurrency", concurrency, 1, 10**4)
        self.timeout_s, self.on_error, self.error_value = timeout_s, on_error, error_value
        self.concurrency = concurrency
        self.errors = 0
        self._thread: _Thread | None = None
        self._stuck: list[_Thread] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_thread": None, "_stuck": []}  # threads are this process's

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the function's value per sample."""
        values: list[float] = []
        failures: list[str] = []
        outcomes = self._gathered(samples) if _is_coroutine_function(self.function) else map(self._called, samples)
        for row, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
            try:
                values.append(_number(outcome))
            except Exception as error:
                message = f"reward `{self._term_name()}` failed in {row_name(row, sample)}: {_describe(error)}"
                if self.timeout_s is not None and isinstance(error, ValueError) and _SIGNALS.search(str(error)):
                    message += " Its limit needs the main thread: set `timeout_s: null` of FunctionReward."
                if self.on_error == "stop":
                    raise InputError(message) from error
                values.append(self.error_value)
                failures.append(message)
        if failures:
            self.errors += len(failures)
            _log.warning("%d of %d rows count as %g; %s", len(failures), len(samples), self.error_value, failures[0])
        return values

    def _term_name(self) -> str:
        return _name(self.function)

    def _called(self, sample: Sample) -> Any:
        """Return the function's result, or the exception that it raised, or that its time was up."""
        if self.timeout_s is None:
            outcome = _outcome(self.function, sample)
            if not inspect.iscoroutine(outcome):
                return outcome
            return _outcome(lambda _: self._get_thread().call(lambda: outcome).result(), sample)
        future = self._get_thread().call(_outcome, self.function, sample)
        try:
            return future.result(self.timeout_s)
        except SystemExit as error:
            if not future.done() or future.exception() is not error:  # a signal's handler asks for it
                raise
            return _as_error(error)
        except Exception as error:
            if future.done():  # the function returned a coroutine, and this is its exception
                return error
            self._leave_thread()
            return self._time_up()

    def _gathered(self, samples: Sequence[Sample]) -> list[Any]:
        """Return the same for a coroutine function and all samples."""
        outcomes = [self._time_up() for _ in samples]

        async def call(row: int, turn: asyncio.Semaphore) -> None:
            async with turn:
                try:
                    async with asyncio.timeout(self.timeout_s) as limit:
                        value = await self.function(samples[row])
                    due = limit.when()  # a call that blocks the event loop comes back before its time-out is seen
                    if due is None or asyncio.get_running_loop().time() < due:
                        outcomes[row] = value
                except asyncio.CancelledError as error:
                    outcomes[row] = RuntimeError(f"it was cancelled: {error!r}")
                except SystemExit as error:
                    outcomes[row] = _as_error(error)
                except Exception as error:
                    if not limit.expired():
                        outcomes[row] = error

        async def call_all() -> None:
            turn = asyncio.Semaphore(self.concurrency)
            await asyncio.gather(*(call(row, turn) for row in range(len(samples))))

        rounds = -(-len(samples) // self.concurrency)
        future = self._get_thread().call(call_all)
        try:
            future.result(None if self.timeout_s is None else rounds * self.timeout_s + _GRACE_S)
        except TimeoutError:  # a call blocks the event loop: what is not done by now is late
            self._leave_thread()
        return list(outcomes)

    def _time_up(self) -> Any:
        return TimeoutError(f"no value within {self.timeout_s} s")

    def _get_thread(self) -> _Thread:
        if self._thread is None:
            self._thread = _Thread()
        return self._thread

    def _leave_thread(self) -> None:
        """Let a thread end by itself, if ever."""
        if self._thread is not None:
            self._thread.end()
            self._stuck = [*(thread for thread in self._stuck if thread.is_alive()), self._thread]
            self._thread = None
        if len(self._stuck) > MAX_STUCK:
            raise InputError(
                f"reward `{self._term_name()}` must return, but {len(self._stuck)} of its calls have not, long after "
                f"their limit of {self.timeout_s} s."
            )


class _Thread:
    """A thread that makes one call after the other; it never keeps the interpreter from ending."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name="FunctionReward", daemon=True)
        self._thread.start()
        self.end = weakref.finalize(self, self._calls.put, None)
        self.is_alive = self._thread.is_alive

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Make a call, or run a coroutine function, when those before it are done."""
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        return future


_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    import torch

    runner = asyncio.Runner()  # one event loop for all coroutines of this thread
    try:
        with torch.no_grad():  # which every thread has of its own
            while (call := calls.get()) is not None:
                _make(call, runner)
                del call  # it may hold the reward, whose end ends this thread
    finally:
        runner.close()


def _make(call: _Call, runner: asyncio.Runner) -> None:
    future, function, arguments = call
    try:
        result = function(*arguments)
        future.set_result(runner.run(result) if inspect.iscoroutine(result) else result)
    except BaseException as error:
        future.set_exception(error)


def _unwrapped(function: Callable[..., Any]) -> Any:
    return getattr(function, "func", function)  # of a partial function


def _name(function: Callable[..., Any]) -> str:
    inner = _unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__)).strip("<>")  # of a lambda, too, a key for logs


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Tell whether a function, or an object's ``__call__``, is a coroutine function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(_unwrapped(function)).__call__)


def _outcome(function: Callable[[Sample], Any], sample: Sample) -> Any:
    """Return a function's result, or the exception that it raises."""
    try:
        return function(sample)
    except SystemExit as error:
        return _as_error(error)
    except Exception as error:
        return error


def _as_error(error: SystemExit) -> RuntimeError:
    """Return an exit that a function asks for as an error: it would end the run as if that were done."""
    return RuntimeError(f"it asks to exit with {error.code!r}").with_traceback(error.__traceback__)


def _number(outcome: Any) -> float:
    if isinstance(outcome, Exception):
        raise outcome
    if not math.isfinite(value := as_number(outcome)):
        raise ValueError(f"the value must be finite, got {value}")
    return value


def _describe(error: Exception) -> str:
    """Return an exception with the line that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}."


def _find(path: str) -> Callable[[Sample], Any]:
    """Return the function that ``package.module.function`` or ``package.module:function`` names."""
    module, _, name = path.rpartition(":" if ":" in path else ".")
    try:
        function: Callable[[Sample], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"`function` must be package.module.function, got {path!r}: {error}.") from error
    return function


def _check_function(function: Any) -> None:
    """Raise InputError unless ``function`` can be called with one sample; one that takes batches is named as such.

    What is not written in Python, such as ``math.sqrt``, and classes take other things than samples; so does a function
    that says of its argument that it is a text or a number.
    """
    if not callable(function):
        raise InputError(f"`function` must be a function, got {function!r}.")
    signature: Any = "(...)"
    bound: dict[str, Any] = {}
    with contextlib.suppress(TypeError, ValueError):  # a builtin's may be unknown
        signature = inspect.signature(function)
        bound = signature.bind(None).arguments
    annotations = [signature.parameters[name].annotation for name in bound]
    if (
        not bound
        or isinstance(function, type)
        or inspect.isbuiltin(_unwrapped(function))
        or not _BATCH_ARGUMENTS.isdisjoint(signature.parameters)
        or not _OTHER_TYPES.isdisjoint(str(getattr(kind, "__name__", kind)) for kind in annotations)
    ):
        raise InputError(
            f"`function` must take one sample and return one number, as `def {_name(function)}(sample)` with "
            "`sample.completion`, `sample.problem.question` and `sample.problem.answer`; "
            f"got {_name(function)}{signature}, which takes lists as TRL's reward functions do or other arguments."
        )
