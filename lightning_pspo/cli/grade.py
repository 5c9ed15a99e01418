r"""Grade a file of completions: ``python scripts/grade.py INPUT.jsonl --output OUT.jsonl``.

Every row of INPUT, a JSON object with the completion and the reference answer as texts, becomes one row of OUT, in the
same order, with ``verdict`` (correct, wrong, no_answer, error, timeout), ``extracted`` and ``rule`` added or replaced.
A reference with a ``####`` or ``\boxed`` is taken to be a whole solution that ends in its answer; it must have one.

The file is streamed. After an interruption of any kind the same command goes on where it stopped; a finished OUT is
left as it is. A row that cannot be used stops with its file and row, and what came before it is kept. The settings that
the verdicts depend on lie beside OUT, so that no rerun mixes two kinds.

Exit status: 0 all rows are graded, 2 the input or a setting cannot be used, 1 something else failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, get_args

from lightning_pspo.files import locked, read_objects, write_atomically
from lightning_pspo.grading import Grade, Mode, Verdict, extract
from lightning_pspo.grading.pool import Grader

ADDED = ("verdict", "extracted", "rule")
BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20
PROGRESS_S = 10.0
LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
EMPTY_MARKER = re.compile(r"####\s*\Z|\\boxed\s*\{\s*\}")


class BadInputError(Exception):
    """What the user has to mend; the message says where."""


@dataclass(frozen=True)
class Row:
    """One row of the input.

    Attributes:
        fields: As they were read, without those that grading adds.
        completion: What the model wrote.
        answer: The reference answer.
        size: Bytes of the line.
    """

    fields: dict[str, Any]
    completion: str
    answer: str
    size: int


def main(arguments: list[str] | None = None) -> int:
    """Grade a file and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        grader = Grader(options.mode, workers=options.workers, deadline_s=options.deadline)
    except ValueError as error:
        return fail(error, 2)
    try:
        with grader:
            counts = run(options, grader)
    except BadInputError as error:
        return fail(error, 2)
    except (OSError, RuntimeError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on where it stopped", 130)
    rows = counts.total()
    shown = ", ".join(f"{verdict.value} {counts[verdict.value]}" for verdict in Verdict)
    print(f"{rows} rows: {shown}; accuracy {counts[Verdict.CORRECT.value] / rows:.4f}")
    return 0


def fail(reason: object, status: int) -> int:
    """Say why there is no result, and return the status."""
    print(f"error: {reason}", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        prog="lightning-pspo grade", description="Grade a JSON Lines file of completions; rerun it to continue."
    )
    parser.add_argument("input", type=Path, metavar="INPUT.jsonl", help="rows with a completion and a reference answer")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.jsonl", help="the rows with their verdicts")
    parser.add_argument("--answer-field", default="answer", help="field of the reference answer (default answer)")
    parser.add_argument("--response-field", default="response", help="field of the completion (default response)")
    parser.add_argument("--mode", choices=get_args(Mode), default="lenient", help="where an answer may stand")
    parser.add_argument("--workers", type=int, default=2, help="processes for hard comparisons (default 2)")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds for one comparison (default 5)")
    return parser


def run(options: argparse.Namespace, grader: Grader) -> Counter[str]:
    """Grade what is not graded yet.

    Returns:
        Verdict -> number of rows of the whole output.

    Raises:
        BadInputError: A row, the output or a setting cannot be used.
    """
    check_paths(options.input, options.output)
    with open_output(options.output) as output:
        rows = read_rows(options.input, options.response_field, options.answer_field)
        counts, rows = resume(output, rows, options)
        check_settings(options, counts.total())
        done, started = counts.total(), time.monotonic()
        shown = started
        try:
            for batch in batches(rows):
                grades = grader.grade([(row.completion, row.answer) for row in batch])
                output.write(b"".join(as_line(row.fields, grade) for row, grade in zip(batch, grades, strict=True)))
                output.flush()
                counts.update(grade.verdict.value for grade in grades)
                if time.monotonic() - shown > PROGRESS_S:
                    shown = time.monotonic()
                    speed = (counts.total() - done) / (shown - started)
                    print(f"{counts.total()} rows are graded, {speed:.0f} a second", file=sys.stderr)
        except BadInputError as error:
            raise BadInputError(
                f"{error} The {counts.total()} rows before it are graded and kept in {options.output}: mend it and run "
                "the same command again."
            ) from None
    if not counts:
        raise BadInputError(f"{options.input}: must have at least one row, got none.")
    return counts


def check_paths(source: Path, output: Path) -> None:
    """Raise BadInputError unless ``source`` is a file that is not also the output."""
    if not source.is_file():
        raise BadInputError(f"INPUT.jsonl must be a file that exists, got {source}.")
    if output.exists() and not output.is_file():
        raise BadInputError(f"--output must be a file, got {output}.")
    if output.exists() and output.samefile(source):
        raise BadInputError(f"--output must not be the input, got {output}.")


def open_output(path: Path) -> BinaryIO:
    """Open the output for this process alone, and keep what is in it."""
    stream = locked(path)
    if stream is None:
        raise BadInputError(f"--output must not be in use, but another process is writing {path}.")
    return stream


def read_rows(path: Path, response_field: str, answer_field: str) -> Iterator[Row]:
    """Yield the rows, blank lines left out.

    Raises:
        BadInputError: A row cannot be used; its number is that of the line.
    """
    for number, size, fields in _objects(path):
        where = f"{path}, row {number}"
        completion, answer = (text_field(fields, field, where) for field in (response_field, answer_field))
        if not answer.strip():
            raise BadInputError(f"{where}: field {answer_field!r} must not be empty.")
        if "####" in answer or r"\boxed" in answer:
            answer = unwrap(answer, f"{where}: field {answer_field!r}")
        kept = {name: value for name, value in fields.items() if name not in ADDED}
        yield Row(kept, completion, answer, size)


def _objects(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    try:
        yield from read_objects(path, parse=partial(json.loads, parse_constant=finite, parse_float=finite))
    except ValueError as error:
        raise BadInputError(str(error)) from None


def finite(number: str) -> float:
    """Return a number of a row.

    Raises:
        ValueError: It is not finite, such as NaN or 1e999.

    >>> finite("1e-7")
    1e-07
    """
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.40} is no finite number")
    return value


def unwrap(solution: str, where: str) -> str:
    r"""Return the answer of a reference that has a marker.

    Raises:
        BadInputError: It has none, so that every completion would be wrong.

    >>> unwrap("48 + 24 = 72\n#### 72", "row 1")
    '72'
    >>> unwrap(r"\boxed{}", "row 1")
    Traceback (most recent call last):
    scripts.grade.BadInputError: row 1 must have an answer behind its `####` or in its `\boxed{}`, got '\\boxed{}'.
    """
    answer, _ = extract(solution, "strict")
    if answer is None and not EMPTY_MARKER.search(solution):  # a solution with headings may state its answer
        answer, _ = extract(solution)
    if answer is None:
        shown = solution if len(solution) <= 80 else f"... {solution[-80:]}"
        raise BadInputError(f"{where} must have an answer behind its `####` or in its `\\boxed{{}}`, got {shown!r}.")
    return answer


def text_field(fields: dict[str, Any], field: str, where: str) -> str:
    """Return a field that must be text.

    Raises:
        BadInputError: It is missing or something else.
    """
    if field not in fields:
        raise BadInputError(f"{where}: must have the field {field!r}, got {sorted(fields)!s:.200}.")
    value = fields[field]
    if not isinstance(value, str):
        raise BadInputError(f"{where}: field {field!r} must be one text, got {json.dumps(value):.80}.")
    return value


def resume(output: BinaryIO, rows: Iterator[Row], options: argparse.Namespace) -> tuple[Counter[str], Iterator[Row]]:
    """Pass over the rows that are graded already, and cut off a last line that was not finished.

    Returns:
        Verdict -> number of rows, and the rows that are left.

    Raises:
        BadInputError: The output has other rows than the input, or one without a verdict; it is left as it was.
    """
    counts: Counter[str] = Counter()
    end = 0
    for number, line in enumerate(output, start=1):
        row = next(rows, None)
        begin = b"" if row is None else as_line(row.fields)[:-2]
        whole = line.endswith(b"}\n")
        if row is None or not (line.startswith(begin) or (begin.startswith(line) and not whole)):
            raise BadInputError(
                f"--output {options.output} must be new or hold rows of {options.input}, but its row {number} is "
                "another one: take another file, or remove it."
            )
        if not whole:
            rows = chain([row], rows)
            break
        verdict = read_verdict(line[len(begin) :])
        if verdict is None:
            raise BadInputError(
                f"--output {options.output}: row {number} must end in its verdict as this script writes it, got "
                f"{line[len(begin) :].decode(errors='replace'):.80}: take another file, or remove it."
            )
        counts[verdict] += 1
        end += len(line)
    if output.seek(0, os.SEEK_END) > end:
        output.seek(end)
        output.truncate()
    return counts, rows


def read_verdict(end: bytes) -> str | None:
    r"""Return the verdict in what grading added to a line; None where that is something else.

    >>> read_verdict(b', "verdict": "wrong", "extracted": "7", "rule": "hash"}\n'), read_verdict(b', "verdict": "x"}\n')
    ('wrong', None)
    """
    try:
        added = json.loads(b"{" + end.removeprefix(b","))
        return Verdict(added["verdict"]).value if tuple(added) == ADDED else None
    except (ValueError, KeyError, RecursionError):
        return None


def check_settings(options: argparse.Namespace, graded: int) -> None:
    """Hold the settings against those of the rows that are there, which lie beside the output.

    Raises:
        BadInputError: They are others, or cannot be read.
    """
    path = options.output.with_name(f"{options.output.name}.settings.json")
    settings = {name: getattr(options, name) for name in ("mode", "answer_field", "response_field")}
    if graded and path.is_file():
        try:
            earlier = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise BadInputError(
                f"{path} must hold the settings of the {graded} rows of {options.output}, but is damaged: remove both "
                f"to begin again, or it alone if the rows were graded with {json.dumps(settings)}."
            ) from None
        if earlier != settings:
            raise BadInputError(
                f"--output {options.output} has {graded} rows that were graded with {json.dumps(earlier)}: they must "
                f"not be mixed with {json.dumps(settings)}; take another file, or remove it."
            )
    else:
        write_atomically(path, (json.dumps(settings) + "\n").encode())


def batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield the rows in lists that fit in memory; those before a row that cannot be used come before its error."""
    batch: list[Row] = []
    size = 0
    try:
        for row in rows:
            batch.append(row)
            size += row.size
            if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    except BadInputError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def as_line(fields: dict[str, Any], grade: Grade | None = None) -> bytes:
    """Return a row as a line of UTF-8, or of ASCII where a text has characters that some readers break lines at.

    So it is also with half of a surrogate pair, for which UTF-8 has no bytes.
    """
    added = {} if grade is None else {"verdict": grade.verdict.value, "extracted": grade.extracted, "rule": grade.rule}
    try:
        text = json.dumps(fields | added, ensure_ascii=False)
        if not LINE_BREAKS.search(text):
            return text.encode() + b"\n"
    except UnicodeEncodeError:
        pass
    return json.dumps(fields | added).encode() + b"\n"
