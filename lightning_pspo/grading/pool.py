"""Grading of many completions, with a deadline for each."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any, Self, get_args

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.grading.equivalence import quick
from lightning_pspo.grading.extraction import Mode
from lightning_pspo.grading.grader import Attempt, CutOff, Grade, Verdict, read_answer, settle
from lightning_pspo.grading.processes import WorkerPool

_log = logging.getLogger(__name__)

MIN_MEMORY_MB = 128  # a worker could not start with less
MAX_DEADLINE_S = 86_400.0  # a day; timers of the system have a limit
_SETTINGS = ("mode", "cut_off", "workers", "deadline_s", "memory_mb")
_REMEMBERED = 4096
_DECIDED = {Verdict.CORRECT: True, Verdict.WRONG: False}


class Grader:
    r"""Grades whole batches; no text can stop it.

    Pairs that the cheap rules decide are decided in this process, in time linear in the text. All others go to worker
    processes, which are started when the first such pair comes: a worker that is stuck is ended at the pair's deadline
    (verdict ``timeout``), one that crashes is replaced (verdict ``error``, after a second try), and all others of the
    batch are graded as if it had not been there. What became of the last few thousand such pairs, errors aside, is
    remembered until ``close``: one that is stuck costs its deadline once, in however many calls it comes.

    Any thread may call it; calls take turns. A copy, a pickle or a fork of a grader takes the settings along and starts
    its own workers. They end with ``close``, with the grader, and with this process however it ends.

    Args:
        mode: Which rules may find the answer: see `extraction.extract`.
        cut_off: Which answers count in a completion that the token limit cut off: ``marked`` ones (``####``, a box,
            "the answer is"), ``any``, or ``none``.
        workers: Processes that compare side by side, at least 1. None for one a core, from 2 to 8.
        deadline_s: Processor time, user and system, that the comparison of one pair may take of its worker, in
            seconds, in (0, 86400]. A pair that sleeps is an ``error`` after 60 deadlines (at least 60 s) of wall time.
        memory_mb: Address space of each worker in MiB, at least 128; a pair that needs more is an ``error``. A lower
            limit of the process (``ulimit -v``) holds for its workers too.

    Raises:
        InputError: A setting is out of range.

    >>> with Grader() as grader:
    ...     grades = grader.grade([("So #### 4", "5"), ("I give up.", "4"), (r"\boxed{\sqrt{12}}", r"2\sqrt{3}")])
    >>> [grade.verdict.value for grade in grades]
    ['wrong', 'no_answer', 'correct']
    """

    def __init__(
        self,
        mode: Mode = "lenient",
        *,
        cut_off: CutOff = "marked",
        workers: int | None = None,
        deadline_s: float = 5.0,
        memory_mb: int = 1024,
    ) -> None:
        for name, value, choices in (("mode", mode, get_args(Mode)), ("cut_off", cut_off, get_args(CutOff))):
            if value not in choices:
                raise InputError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
        workers = min(max(os.cpu_count() or 2, 2), 8) if workers is None else workers
        check_at_least("workers", workers, 1, 1024)
        if not 0.0 < deadline_s <= MAX_DEADLINE_S:
            raise InputError(f"`deadline_s` must lie in (0, {MAX_DEADLINE_S:.0f}], got {deadline_s}.")
        check_at_least("memory_mb", memory_mb, MIN_MEMORY_MB)
        self.mode: Mode = mode
        self.cut_off: CutOff = cut_off
        self.workers, self.deadline_s, self.memory_mb = workers, deadline_s, memory_mb
        self._pool = WorkerPool(workers, deadline_s, memory_mb)
        weakref.finalize(self, self._pool.close)
        self._settled: dict[tuple[str, str], Verdict] = {}  # replaced, never changed, so that threads need no lock

    def grade(self, attempts: Sequence[Attempt | tuple[str, str]]) -> list[Grade]:
        """Return the grade of each attempt, or pair of completion and reference answer, in order.

        Raises:
            ValueError: A completion, a reference or a question is not text.
            RuntimeError: No worker could be started, or `close` was called before the pairs were compared.
        """
        _check(attempts)
        rows = [Attempt(*attempt) for attempt in attempts]
        read = [self._read(row) for row in rows]
        pairs = [(answer[0], row.answer) for row, answer in zip(rows, read, strict=True) if isinstance(answer, tuple)]
        verdicts = iter(self._compare(pairs))
        return [
            self._settle(row, *answer, next(verdicts)) if isinstance(answer, tuple) else answer
            for row, answer in zip(rows, read, strict=True)
        ]

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Return whether the two answers of each pair are equivalent, in order; None where that was not decided.

        Raises:
            ValueError: A pair is not two texts.
            RuntimeError: No worker could be started, or `close` was called before the pairs were compared.
        """
        _check(pairs)
        return [_DECIDED.get(verdict) for verdict in self._compare(pairs)]

    def close(self) -> None:
        """End the worker processes; a later call starts new ones.

        A call that is in progress, in another thread or below a signal handler, raises RuntimeError unless it is done.
        """
        self._settled = {}
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS}

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self.__init__(**settings)  # type: ignore[misc]

    def _read(self, attempt: Attempt) -> tuple[str, str] | Grade:
        """Return the answer and its rule, or the grade where that needs no comparison."""
        try:
            return read_answer(attempt, self.mode, self.cut_off)
        except Exception as error:
            _log.warning("Extraction failed on %.200r: %r", attempt.completion, error)
            return Grade(Verdict.ERROR, None, "none")

    @staticmethod
    def _settle(attempt: Attempt, text: str, rule: str, verdict: Verdict) -> Grade:
        same = _DECIDED.get(verdict)
        return Grade(verdict, text, rule) if same is None else settle(attempt, text, rule, same)

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return a verdict for each pair."""
        verdicts, settled = [Verdict.ERROR] * len(pairs), self._settled
        undecided: dict[tuple[str, str], list[int]] = {}  # equal pairs of a batch are compared once
        for index, (extracted, answer) in enumerate(pairs):
            pair = extracted, answer
            try:
                same = quick(*pair)
            except Exception as error:
                _log.warning("The quick rules failed on %.200r and %.200r: %r", *pair, error)
                continue
            if same is not None:
                verdicts[index] = Verdict.CORRECT if same else Verdict.WRONG
            elif known := settled.get(pair):
                verdicts[index] = known
            else:
                undecided.setdefault(pair, []).append(index)
        if undecided:
            judged = dict(zip(undecided, self._pool.judge(list(undecided)), strict=True))
            for pair, index in ((pair, index) for pair, indices in undecided.items() for index in indices):
                verdicts[index] = judged[pair]
            new = [(pair, verdict) for pair, verdict in judged.items() if verdict is not Verdict.ERROR]
            self._settled = dict([*self._settled.items(), *new][-_REMEMBERED:])
        return verdicts


def _check(rows: Sequence[tuple[Any, ...]]) -> None:
    for index, row in enumerate(rows):
        texts = row[:3] if isinstance(row, Attempt) else row
        if len(texts) != 2 + isinstance(row, Attempt) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"pair {index} must be two texts, or an Attempt, got {row!s:.80}.")
