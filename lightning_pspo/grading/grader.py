"""Grade completions by a reference answer or a task's own scorer: one, or many with a deadline for each."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Self, get_args

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.grading.asked import asked_number, in_asked_unit, says_opposite, without_scale
from lightning_pspo.grading.copies import refusal, without_labels, without_question
from lightning_pspo.grading.equivalence import YES_OR_NO, equivalent, quick
from lightning_pspo.grading.extraction import NEXT_QUESTION, Mode, extract
from lightning_pspo.grading.last_number import emphasized, last_match, last_number, numbers, rougher
from lightning_pspo.grading.normalize import clean, compact
from lightning_pspo.grading.numbers import MAX_ANSWER_CHARS, read_number
from lightning_pspo.grading.processes import Verdict, WorkerPool
from lightning_pspo.grading.qualifiers import in_terms_of
from lightning_pspo.grading.readings import other_readings
from lightning_pspo.grading.remarks import without_remarks
from lightning_pspo.grading.statements import REPLY, concluded

CutOff = Literal["marked", "any", "none"]
"""Which answers count in a completion that the token limit cut off: marked ones, all that a rule finds, or none."""

Scorer = Callable[[str], bool | None]
"""A task's own judgement of an answer; None where equality with the reference decides."""

_log = logging.getLogger(__name__)

_TAGGED = re.compile(rf"<answer>\s*([^<]{{1,{MAX_ANSWER_CHARS}}}?)\s*</answer>")
MIN_MEMORY_MB = 128  # a worker could not start with less
MAX_DEADLINE_S = 86_400.0  # a day; timers of the system have a limit
_SETTINGS = ("mode", "cut_off", "workers", "deadline_s", "memory_mb")
_UNMARKED = ("last_number", "last_formula", "none")
_IS_PROSE = re.compile(r"(?=.*[0-9])(?!.*[=\\^]).*[A-Za-z]{2,}\W+[A-Za-z]{2}|[0-9][^=\\^]*[A-Za-z]{2}[^=\\^]*[0-9]")
_IS_SENTENCE = re.compile(
    r"[A-Z][a-z]* [a-z]+|\\?\$?[0-9][0-9.,]* [a-z]+ (?:is|are|was|were|will|ha[sd]|have|need|remain)\b"
)
_REMEMBERED = 4096
_VERDICTS = {True: Verdict.CORRECT, False: Verdict.WRONG}


class Attempt(NamedTuple):
    """A completion with all that its grade depends on."""

    completion: str  # any text, also hostile
    answer: str  # the reference, without its derivation
    question: str = ""  # a copy of it, or of a part of it, is no answer: see `copies.refusal`; empty if it is unknown
    truncated: bool = False  # whether the token limit ended the completion
    scorer: Scorer | None = None  # judges the extracted answer; where it gives None, the reference decides


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its reason.

    ``rule`` is the extraction rule that found the answer (see `extraction.extract`), ``whole`` for another reading of
    the text's end that is the reference (lenient mode, see `readings.other_readings`), or the rule that refused the
    answer: ``copied``, ``unevaluated`` and ``unasked`` (see `copies.refusal`), ``truncated`` (only an unmarked answer,
    cut off).
    """

    verdict: Verdict
    extracted: str | None
    rule: str

    @property
    def correct(self) -> bool:
        """True for the verdict ``correct``."""
        return self.verdict is Verdict.CORRECT


def grade(
    completion: str,
    answer: str,
    mode: Mode = "lenient",
    *,
    question: str = "",
    truncated: bool = False,
    cut_off: CutOff = "marked",
    scorer: Scorer | None = None,
) -> Grade:
    r"""Judge a completion against the reference answer, without a deadline; for the arguments see `Attempt`, `Grader`.

    >>> grade("2 + 2 = 4\n#### 4", "4.0")
    Grade(verdict=<Verdict.CORRECT: 'correct'>, extracted='4', rule='hash')
    >>> grade("Then we add 4", "4", truncated=True)
    Grade(verdict=<Verdict.NO_ANSWER: 'no_answer'>, extracted=None, rule='truncated')
    """
    attempt = Attempt(completion, answer, question, truncated, scorer)
    read = read_answer(attempt, mode, cut_off)
    return read if isinstance(read, Grade) else settle(attempt, *read, equivalent(read[0], answer))


def read_answer(attempt: Attempt, mode: Mode, cut_off: CutOff) -> tuple[str, str] | Grade:
    """Return the answer in a completion and the rule that found it, or the grade where that needs no comparison."""
    text = without_labels(without_question(attempt.completion, attempt.question), attempt.question)
    cut = attempt.truncated and cut_off != "any"
    extracted, rule = (
        (None, "none") if cut and cut_off == "none" else extract(text, mode, cut=cut, question=attempt.question)
    )
    if cut and extracted is None and extract(text, mode)[0] is not None:
        rule = "truncated"
    if attempt.scorer is not None and (tagged := _TAGGED.findall(text)):  # a task's own scorer expects it whole
        extracted, rule = tagged[-1], "stated"
    answer, question = attempt.answer, attempt.question
    is_stated = rule == "stated" and not read_number(clean(answer))
    is_open = (rule in _UNMARKED or is_stated) and mode == "lenient" and not cut
    line = without_remarks(text.strip(), question) if is_open else ""
    if is_open and rule in ("last_number", "none"):
        number = asked_number(question, line) or emphasized(line)
        extracted, rule = (number, "last_number") if number else (extracted, rule)
    elif rule in ("hash", "boxed") and (said := clean((extracted or "")[:MAX_ANSWER_CHARS])) and _IS_PROSE.match(said):
        alone = last_number(said) if _IS_SENTENCE.match(said) and len(numbers(said)) == 1 else None
        extracted = asked_number(question, said) or concluded(said) or alone or extracted
    if is_open:
        if not is_stated and compact(clean(answer)) in YES_OR_NO and (reply := last_match(REPLY, text)):
            extracted, rule = reply[1], "stated"
        elif not quick(extracted or "", answer) and not NEXT_QUESTION.search(text):
            equal = (reading for reading in other_readings(line, answer, question) if quick(reading, answer))
            if reading := next(equal, None):
                is_part = reading != line and read_number(reading)
                extracted, rule = reading, "last_number" if is_part else "whole"
    if extracted is None:
        if rule == "none" and text != attempt.completion and (copied := extract(attempt.completion, mode)[0]):
            return Grade(Verdict.WRONG, copied, "copied")
        return Grade(Verdict.NO_ANSWER, None, rule)
    if attempt.scorer is not None and len(extracted) <= MAX_ANSWER_CHARS:
        right = attempt.scorer(extracted)
        if right is not None:
            return Grade(_VERDICTS[right], extracted, rule)
    said = text if question and rule == "last_number" and len(extracted) <= MAX_ANSWER_CHARS else ""
    if question and any(says_opposite(context, extracted, question) for context in {said, text * (rule == "stated")}):
        return Grade(Verdict.WRONG, extracted, "unasked")
    bare = in_terms_of(question, extracted)
    if (terms := in_asked_unit(question, answer, bare, said)) is None:
        return Grade(Verdict.WRONG, extracted, "unasked")
    extracted = terms if bare == extracted else in_asked_unit(question, answer, extracted, said) or extracted
    rough = rougher(text) if rule == "last_number" and "/" in extracted else None
    readings = dict.fromkeys(filter(None, (without_scale(question, extracted), extracted, terms, rough)))
    if len(readings) > 1:
        extracted = next((reading for reading in readings if quick(reading, answer)), terms)
    if question and quick(extracted, answer) is None and (reason := refusal(extracted, answer, question)):
        return Grade(Verdict.WRONG, extracted, reason)  # without the symbolic comparison
    return extracted, rule


def settle(attempt: Attempt, extracted: str, rule: str, same: bool | Verdict) -> Grade:
    """Return the grade of an answer that is, or is not, equivalent to the reference, or has a verdict."""
    verdict = same if isinstance(same, Verdict) else _VERDICTS[same]
    is_checked = verdict is Verdict.CORRECT and attempt.question
    if is_checked and (reason := refusal(extracted, attempt.answer, attempt.question)):
        return Grade(Verdict.WRONG, extracted, reason)
    return Grade(verdict, extracted, rule)


class Grader:
    r"""Grades whole batches; no text can stop it.

    Pairs that the cheap rules leave open go to worker processes, started for the first such pair: one that is stuck is
    ended at the pair's deadline (verdict ``timeout``), one that crashes is replaced (``error``, after a second try).
    The verdicts on the last few thousand such pairs, errors aside, are remembered until ``close``: one that is stuck
    costs its deadline once, in however many calls it comes.

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
        rows = [(row, self._read(row)) for row in (Attempt(*attempt) for attempt in attempts)]
        verdicts = iter(self._compare([(read[0], row.answer) for row, read in rows if isinstance(read, tuple)]))
        return [read if isinstance(read, Grade) else settle(row, *read, next(verdicts)) for row, read in rows]

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Return whether the two answers of each pair are equivalent, in order; None where that was not decided.

        Raises what `grade` does.
        """
        _check(pairs)
        decided = {verdict: same for same, verdict in _VERDICTS.items()}
        return [decided.get(verdict) for verdict in self._compare(pairs)]

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

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **{name: getattr(self, name) for name in _SETTINGS}), ()

    def _read(self, attempt: Attempt) -> tuple[str, str] | Grade:
        try:
            return read_answer(attempt, self.mode, self.cut_off)
        except Exception as error:
            _log.warning("Extraction failed on %.200r: %r", attempt.completion, error)
            return Grade(Verdict.ERROR, None, "none")

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return a verdict for each pair; equal ones are compared once."""
        pairs = [(extracted, answer) for extracted, answer in pairs]
        verdicts = {pair: self._without_worker(*pair) for pair in dict.fromkeys(pairs)}
        if undecided := [pair for pair, verdict in verdicts.items() if verdict is None]:
            judged = dict(zip(undecided, self._pool.judge(undecided), strict=True))
            new = [(pair, verdict) for pair, verdict in judged.items() if verdict is not Verdict.ERROR]
            self._settled = dict([*self._settled.items(), *new][-_REMEMBERED:])
            verdicts |= judged
        return [verdicts[pair] or Verdict.ERROR for pair in pairs]

    def _without_worker(self, extracted: str, answer: str) -> Verdict | None:
        try:
            same = quick(extracted, answer)
        except Exception as error:
            _log.warning("The quick rules failed on %.200r and %.200r: %r", extracted, answer, error)
            return Verdict.ERROR
        return self._settled.get((extracted, answer)) if same is None else _VERDICTS[same]


def _check(rows: Sequence[tuple[Any, ...]]) -> None:
    for index, row in enumerate(rows):
        texts = row[:3] if isinstance(row, Attempt) else row
        if len(texts) != 2 + isinstance(row, Attempt) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"pair {index} must be two texts, or an Attempt, got {row!s:.80}.")
