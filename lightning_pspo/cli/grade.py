r"""Grade a file of completions: ``lightning-pspo grade INPUT.jsonl --output OUT.jsonl``.

Every row of INPUT, a JSON object with the completion and the reference answer as texts, becomes one row of OUT, in the
same order, with ``verdict`` (correct, wrong, no_answer, error, timeout), ``extracted`` and ``rule`` added or replaced.
A reference with a ``####`` or ``\boxed`` is a whole solution that ends in its answer; it must have one. Where a row has
the question, a copy of it is not an answer; where ``truncated`` is true, only a marked answer counts (``--cut-off``).

The file is streamed. After an interruption of any kind the same command goes on where it stopped; a finished OUT is
left as it is. A row that cannot be used stops with its file and row, and what came before it is kept. The settings that
the verdicts depend on lie beside OUT, so that no rerun mixes two kinds.

Exit status: 0 all rows are graded, 2 the input or a setting cannot be used, 1 something else failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, get_args

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import InputError
from lightning_pspo.files import (
    lines_of,
    locked,
    read_bounded,
    read_objects,
    text_value,
    unique_keys,
    unlock,
    write_atomically,
)
from lightning_pspo.grading import Attempt, CutOff, Grade, Mode, Verdict, extract
from lightning_pspo.grading.grader import Grader
from lightning_pspo.progress import advance, begin, shown

ADDED = ("verdict", "extracted", "rule")
SETTINGS = ("mode", "cut_off", "answer_field", "response_field", "question_field", "truncated_field")
BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20
LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
EMPTY_MARKER = re.compile(r"####\s*\Z|\\boxed\s*\{\s*\}")


@dataclass(frozen=True)
class Row:
    """One row of the input."""

    fields: dict[str, Any]  # as they were read, without those that grading adds
    attempt: Attempt
    size: int  # bytes of the line


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Grade a file and return the exit status."""
    options = parser().parse_args(arguments)
    grader = Grader(options.mode, cut_off=options.cut_off, workers=options.workers, deadline_s=options.deadline)
    with shown("grade"), grader:
        counts = run(options, grader)
    rows = counts.total()
    verdicts = ", ".join(f"{verdict.value} {counts[verdict.value]}" for verdict in Verdict)
    print(f"{rows} rows: {verdicts}; accuracy {counts[Verdict.CORRECT.value] / rows:.4f}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = own_parser("grade", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT.jsonl", help="rows with a completion and a reference answer")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.jsonl", help="the rows with their verdicts")
    for name, what in (
        ("answer", "reference answer"),
        ("response", "completion"),
        ("question", "question, where there is one"),
        ("truncated", "flag of a completion that the token limit cut off, where there is one"),
    ):
        parser.add_argument(f"--{name}-field", default=name, help=f"field of the {what} (default {name})")
    parser.add_argument("--mode", choices=get_args(Mode), default="lenient", help="which rules may find the answer")
    parser.add_argument(
        "--cut-off", choices=get_args(CutOff), default="marked", help="answers that count in a cut-off completion"
    )
    parser.add_argument("--workers", type=int, help="processes for hard comparisons (default: by cores, 2 to 8)")
    parser.add_argument("--deadline", type=float, default=5.0, help="processor seconds for one comparison (default 5)")
    return parser


def run(options: argparse.Namespace, grader: Grader) -> Counter[str]:
    """Grade what is not graded yet; return how often the whole output has each verdict."""
    source, target = options.input, options.output
    if not source.is_file():
        raise InputError(f"INPUT.jsonl must be a file that exists, got {source}.")
    if target.exists() and not target.is_file():
        raise InputError(f"--output must be a file, got {target}.")
    if target.exists() and target.samefile(source):
        raise InputError(f"--output must not be the input, got {target}.")
    output = locked(target)
    if output is None:
        raise InputError(f"--output must not be in use, but another process is writing {options.output}.")
    with contextlib.ExitStack() as held:
        held.callback(unlock, output)
        counts, rows = resume(output, read_rows(options), options)
        check_settings(options, counts.total())
        begin("grading", "rows")
        advance(counts.total())
        try:
            for batch in batches(rows):
                grades = grader.grade([row.attempt for row in batch])
                output.write(b"".join(as_line(row.fields, grade) for row, grade in zip(batch, grades, strict=True)))
                output.flush()
                counts.update(grade.verdict.value for grade in grades)
                advance(len(batch))
        except InputError as error:
            raise InputError(
                f"{error} The {counts.total()} rows before it are graded and kept in {options.output}: correct it and "
                "run the same command again."
            ) from None
    if not counts:
        raise InputError(f"{options.input}: must have at least one row, got none.")
    return counts


def read_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows, blank lines left out; InputError names the line of one that cannot be used."""
    parse = partial(json.loads, parse_constant=finite, parse_float=finite, object_pairs_hook=unique_keys)
    try:
        for number, size, fields in read_objects(options.input, parse=parse):
            where = f"{options.input}, row {number}"
            completion = text_value(fields, options.response_field, where)
            answer = text_value(fields, options.answer_field, where)
            if not answer.strip():
                raise InputError(f"{where}: field {options.answer_field!r} must not be empty.")
            if "####" in answer or r"\boxed" in answer:
                answer = unwrap(answer, f"{where}: field {options.answer_field!r}")
            question = text_value(fields, options.question_field, where, default="")
            truncated = fields.get(options.truncated_field, False)
            if not isinstance(truncated, bool):
                raise InputError(
                    f"{where}: field {options.truncated_field!r} must be true or false, got {truncated!r:.40}."
                )
            others = {name: value for name, value in fields.items() if name not in ADDED}
            yield Row(others, Attempt(completion, answer, question, truncated), size)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None


def finite(number: str) -> float:
    """Return a number of a row; ValueError if it is not finite, such as NaN or 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.40} is not a finite number")
    return value


def unwrap(solution: str, where: str) -> str:
    r"""Return the answer of a reference that has a marker; InputError if it has none: all completions would be wrong.

    >>> unwrap("48 + 24 = 72\n#### 72", "row 1")
    '72'
    """
    answer, _ = extract(solution, "strict")
    if answer is None and not EMPTY_MARKER.search(solution):  # a solution with headings may state its answer
        answer, _ = extract(solution)
    if answer is None:
        shown = solution if len(solution) <= 80 else f"... {solution[-80:]}"
        raise InputError(f"{where} must have an answer behind its `####` or in its `\\boxed{{}}`, got {shown!r}.")
    return answer


def resume(output: BinaryIO, rows: Iterator[Row], options: argparse.Namespace) -> tuple[Counter[str], Iterator[Row]]:
    """Skip the rows that are graded already, and cut off a last line that was not finished.

    Returns their verdicts, counted, and the rows that are left. An output with other rows than the input, or with one
    that has no verdict, is refused and left as it was.
    """
    counts: Counter[str] = Counter()
    end = 0
    for number, line in enumerate(lines_of(output, f"--output {options.output}", "row"), start=1):
        row = next(rows, None)
        begin = b"" if row is None else as_line(row.fields)[:-2]
        complete = line.endswith(b"}\n")
        if row is None or not (line.startswith(begin) or (begin.startswith(line) and not complete)):
            raise InputError(
                f"--output {options.output} must be new or hold rows of {options.input}, but its row {number} is "
                "another one: choose another file, or remove it."
            )
        if not complete:
            rows = chain([row], rows)
            break
        verdict = read_verdict(line[len(begin) :])
        if verdict is None:
            raise InputError(
                f"--output {options.output}: row {number} must end in its verdict as this command writes it, got "
                f"{line[len(begin) :].decode(errors='replace'):.80}: choose another file, or remove it."
            )
        counts[verdict] += 1
        end += len(line)
    if output.seek(0, os.SEEK_END) > end:
        output.seek(end)
        output.truncate()
    return counts, rows


def read_verdict(end: bytes) -> str | None:
    """Return the verdict in the fields that grading added to a line; None if they are missing."""
    try:
        added = json.loads(b"{" + end.removeprefix(b","))
        return Verdict(added["verdict"]).value if tuple(added) == ADDED else None
    except (ValueError, KeyError, RecursionError):
        return None


def check_settings(options: argparse.Namespace, graded: int) -> None:
    """Keep the settings in a file beside the output; refuse others than those of the rows that it has."""
    path = options.output.with_name(f"{options.output.name}.settings.json")
    settings = {name: getattr(options, name) for name in SETTINGS}
    if not (graded and path.is_file()):
        write_atomically(path, (json.dumps(settings) + "\n").encode())
        return
    try:
        earlier = json.loads(read_bounded(path))
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} must hold the settings of the {graded} rows of {options.output}, but is damaged: remove both "
            f"to begin again, or it alone if the rows were graded with {json.dumps(settings)}."
        ) from None
    if earlier != settings:
        raise InputError(
            f"--output {options.output} has {graded} rows that were graded with {json.dumps(earlier)}: they must "
            f"not be mixed with {json.dumps(settings)}; choose another file, or remove it."
        )


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
    except InputError:
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
