"""Files of an evaluation's completions: the finished one, and those beside it while it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.files import read_bounded, read_lines
from lightning_pspo.types import EvaluationOutput, Sample

_MEASURED_LATER = ("stage", "k", "selector", "grading_mode")  # settings that change no completion
_ProblemKey = tuple[str, float, str, str]  # source, temperature, id, question
_Recorded = tuple[str, bool, int]  # completion, whether it was truncated, length in tokens
_NO_SAMPLE = (ValueError, KeyError, TypeError, IndexError, ArithmeticError, RecursionError)  # of a line that is none


class CompletionFiles:
    """The file of an evaluation and those that exist beside it while it is written."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.lock = target.with_name(f"{target.name}.lock")
        self.kept = target.with_name(f"{target.name}.kept")  # completions of an interrupted evaluation
        self.settings = target.with_name(f"{target.name}.settings.json")

    def part(self, rank: int) -> Path:
        return self.target.with_name(f"{self.target.name}.rank{rank}.part")

    def parts(self) -> list[Path]:
        return sorted(self.target.parent.glob(f"{self.target.name}.rank*.part"))

    def recorded_rows(self) -> list[dict[str, Any]]:
        """Return the completions of a finished or interrupted evaluation, each once."""
        rows = [row for file in (self.target, self.kept, *self.parts()) for row in _read(file)]
        return list({_recording(row)[:2]: row for row in rows}.values())  # a part repeats what was kept

    def remove(self) -> None:
        for path in (self.target, self.kept, self.settings, *self.parts()):
            path.unlink(missing_ok=True)


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a finished file or of a part, whose last line may have been cut off."""
    for number, line in enumerate(read_lines(file) if file.exists() else (), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            value = json.loads(line)
            row = value[1] if isinstance(value, list) else value
            _recording(row)
        except _NO_SAMPLE:
            raise InputError(f"{file}, line {number}: must be a sample of an evaluation, got {line[:40]!r}.") from None
        yield row


def merged(parts: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """Return the samples of all parts in the order of their keys, and how many lines are none."""
    entries: list[tuple[list[int], dict[str, Any]]] = []
    others = 0
    for line in chain.from_iterable(map(read_lines, parts)):
        try:
            key, row = json.loads(line)
            _recording(row)
            entries.append(([int(number) for number in key], row))
        except _NO_SAMPLE:
            others += 1
    return [row for _, row in sorted(entries, key=itemgetter(0))], others


def _recording(row: Mapping[str, Any]) -> tuple[_ProblemKey, int, _Recorded]:
    if not all(isinstance(row[name], str) for name in ("source", "id", "question", "completion")):
        raise TypeError("texts must be strings")
    key = (row["source"], float(row["temperature"]), row["id"], row["question"])
    return key, int(row["sample"]), (row["completion"], bool(row["truncated"]), int(row["length_tokens"]))


def recordings(rows: Sequence[Mapping[str, Any]]) -> dict[_ProblemKey, list[_Recorded]]:
    """Return the samples of each problem in order, up to the first one that is missing."""
    samples: dict[_ProblemKey, dict[int, _Recorded]] = {}
    for row in rows:
        key, number, recorded = _recording(row)
        samples.setdefault(key, {})[number] = recorded
    return {
        key: [by_number[number] for number in takewhile(by_number.__contains__, count())]
        for key, by_number in samples.items()
    }


def changed_setting(file: Path, settings: Mapping[str, Any]) -> str | None:
    """Return how the settings in ``file`` differ from those of this run; None if completions do not depend on it."""
    try:
        recorded = dict(json.loads(read_bounded(file))) if file.exists() else settings
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{file} must be a JSON object, as CompletionWriter writes it: remove it.") from None
    for name, value in settings.items():
        if name not in _MEASURED_LATER and recorded.get(name) != value:
            path, old, new = _first_difference(name, recorded.get(name), value)
            return f"says that the completions beside it were sampled with {path}={old}, this run has {new}"
    return None


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Return the first part of two settings that differs: ``sources.gsm8k.limit``, 5, 10."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return name, old, new
    key = next(key for key in (*old, *new) if (key in old) != (key in new) or old.get(key) != new.get(key))
    return _first_difference(f"{name}.{key}", old.get(key), new.get(key))


def sample_row(sample: Sample) -> dict[str, Any]:
    """Return a completion with its problem and its grade, as plain values."""
    return {
        "id": sample.problem.id,
        "question": sample.problem.question,
        "completion": sample.completion,
        "answer": sample.problem.answer,
        "extracted": sample.grade.extracted,
        "verdict": sample.grade.verdict.value,
        "rule": sample.grade.rule,
        "truncated": sample.truncated,
        "length_tokens": sample.length_tokens,
    }


def sample_rows(output: EvaluationOutput) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yield each sample with its sorting key: position in the source, index of the temperature, of the sample."""
    batch = output.batch
    positions, valid = batch.positions.tolist(), batch.valid.tolist()
    for rank, (temperature, samples) in enumerate(output.samples.items()):
        each = len(samples) // len(batch)
        for index, sample in enumerate(samples):
            row, number = divmod(index, each)
            if not valid[row]:
                continue
            keys = {"source": batch.source, "temperature": temperature, "sample": number}
            yield [positions[row], rank, number], sample_row(sample) | keys
