"""Read a run's folder for a report; what is missing or damaged becomes a note."""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lightning_pspo.errors import InputError, near_path, one_line
from lightning_pspo.files import read_bounded, read_lines, read_yaml, setting_at
from lightning_pspo.report.curves import Curves, finite, read_curves

SAMPLES_KEPT = 6  # training completions at either end of a run
_MARKS = (
    *("config.yaml", "summary.json", "evaluation.json", "completions.jsonl", "judgements.jsonl", "checkpoints"),
    *("logs/**/metrics.csv", "logs/**/events.out.tfevents.*", "evaluation/*/evaluation.json"),
)
_Read = TypeVar("_Read")


class ReportError(InputError):
    """A report cannot be made from these folders."""


@dataclass(frozen=True)
class EvaluationFile:
    """A file of `EvaluationReport`."""

    name: str  # what was evaluated: the checkpoint's folder, or the file
    document: Mapping[str, Any]


@dataclass
class TrainingRun:
    """What is known about one run; what is not known is empty."""

    path: Path
    label: str = field(default="", init=False)  # the part of its path that tells it from others on the page
    config: Mapping[str, Any] = field(default_factory=dict)  # that it last continued with
    curves: Curves = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)  # of `RunSummary`
    evaluations: Sequence[EvaluationFile] = ()  # of ``validate``, ``test`` and ``evaluate``
    training: Sequence[Mapping[str, Any]] = ()  # first and last completions of `CompletionTable`
    environment: Mapping[str, Any] = field(default_factory=dict)  # machine and versions, from `RunReport`
    judge: Sequence[Mapping[str, Any]] = ()  # rows of ``judgements.jsonl``
    judge_summary: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what is missing, damaged or odd, as sentences

    @property
    def validation_temperature(self) -> str | None:
        """The temperature of the curves that have none in their name."""
        temperatures = setting_at(self.config, "model.evaluation.temperatures")
        first = finite(temperatures[0]) if isinstance(temperatures, list) and temperatures else None
        return None if first is None else f"{first:g}"


def pair(value: Any) -> tuple[float | None, float | None]:
    """Return the bounds of an interval, None for what is not a number."""
    low, high = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return finite(low), finite(high)


def read_run(path: Path) -> TrainingRun:
    """Read a run's folder; ReportError if it holds no run."""
    _check_is_run(path)
    run = TrainingRun(path)
    run.config = _read_config(run)
    run.curves = _attempt(run, lambda: read_curves(path), {}, "logs")
    run.summary = _read_json(run, path / "summary.json")
    run.evaluations = _read_evaluations(run)
    run.training = _read_lines(run, path / "completions.jsonl", SAMPLES_KEPT)
    run.curves = with_measurement_before(run)
    run.environment = _read_json(run, path / "environment.json")
    run.judge = _read_lines(run, path / "judgements.jsonl")
    run.judge_summary = _read_json(run, path / "judge_summary.json")
    if not run.config and not (path / "config.yaml").exists():
        run.notes.append("no config.yaml: its settings are not known, so it is an arm of its own.")
    if not run.curves:
        run.notes.append("no logs: no curves. They come from metrics.csv or the TensorBoard files below its folder.")
    if not run.summary and not (path / "summary.json").exists():
        run.notes.append("no summary.json: it was stopped, has not ended, or ran without RunSummary.")
    return run


def with_measurement_before(run: TrainingRun) -> Curves:
    """Return the run's curves; those of validation start with the summary's measurement before training at step 0."""
    curves = dict(run.curves)
    first, source = run.validation_temperature, run.summary.get("source")
    if first is None:
        return curves
    measured = finite(run.summary.get("temperature"))
    for name, key, temperature in (
        ("accuracy", "accuracy_before", measured),
        ("accuracy", "greedy_accuracy_before", 0.0),
        ("length_tokens", "length_tokens_before", measured),
    ):
        value = finite(run.summary.get(key))
        if value is not None and temperature is not None:
            suffix = "" if f"{temperature:g}" == first else f"@t{temperature:g}"
            known = curves.get(curve := f"val/{source}/{name}{suffix}")
            if known is not None and known[0][0] > 0:
                curves[curve] = (np.insert(known[0], 0, 0.0), np.insert(known[1], 0, value))
    return curves


def _check_is_run(path: Path) -> None:
    if not path.is_dir():
        reason = "is a file." if path.exists() else f"does not exist{near_path(path)}"
        raise ReportError(f"RUN must be the folder of a run, got {path}, which {reason}")
    if any(any(path.glob(mark)) for mark in _MARKS):
        return
    below = sorted({mark.parent for name in _MARKS[:2] for mark in path.glob(f"*/{name}")})
    hint = f" Runs in it: {' '.join(map(str, below[:12]))}." if below else ""
    raise ReportError(f"RUN must be the folder of a run, got {path}, which has no settings, logs or results.{hint}")


def _attempt(run: TrainingRun, read: Callable[[], _Read], otherwise: _Read, name: str) -> _Read:
    """Return what ``read`` returns; if it fails, note why and return ``otherwise``."""
    try:
        return read()
    except (OSError, ValueError, RecursionError) as error:
        run.notes.append(f"{name} could not be read: {one_line(error)}.")
        return otherwise


def _read_json(run: TrainingRun, path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}

    document: Any = _attempt(run, lambda: json.loads(read_bounded(path)), {}, _name(run, path))
    if not isinstance(document, dict):
        run.notes.append(f"{_name(run, path)} is not a JSON object.")
        return {}
    return document


def _read_lines(run: TrainingRun, path: Path, ends: int | None = None) -> list[Mapping[str, Any]]:
    """Return the rows of a JSON Lines file, only the first and last ``ends`` if given; bad lines become a note."""
    first: list[Mapping[str, Any]] = []
    last: deque[Mapping[str, Any]] = deque(maxlen=ends)

    def read() -> int:
        bad = 0
        for line in filter(bytes.strip, read_lines(path)):
            row: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
            if isinstance(row, dict):
                (last if ends is None or len(first) == ends else first).append(row)
            else:
                bad += 1
        return bad

    if path.is_file() and (bad := _attempt(run, read, 0, _name(run, path))):
        run.notes.append(f"{bad} line{'s' if bad > 1 else ''} of {_name(run, path)} could not be read.")
    return [*first, *last]


def _read_config(run: TrainingRun) -> Mapping[str, Any]:
    """Return the last settings of the run: ``config.yaml``, or the highest ``config-<n>.yaml`` of a resumed one."""
    paths = {1: run.path / "config.yaml"} if (run.path / "config.yaml").is_file() else {}
    for path in run.path.glob("config-*.yaml"):
        if match := re.fullmatch(r"config-(\d{1,9})\.yaml", path.name):
            paths[int(match[1])] = path
    for number in sorted(paths, reverse=True):
        path = paths[number]
        config: Any = _attempt(run, partial(read_yaml, path), None, path.name)
        if isinstance(config, dict):
            if number > 1:
                run.notes.append(f"continued with other settings: those shown are of {path.name}.")
            return config
    return {}


def _read_evaluations(run: TrainingRun) -> list[EvaluationFile]:
    patterns = ("evaluation*.json", "evaluation/*/evaluation*.json")

    def natural(path: Path) -> list[tuple[bool, int, str]]:  # sorts ``evaluation-10`` after ``evaluation-9``
        parts = re.split(r"(\d+)", path.as_posix().removesuffix(".json"))
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

    paths = [path for pattern in patterns for path in sorted(run.path.glob(pattern), key=natural)]
    files = []
    for path in paths:
        document = _read_json(run, path)
        if isinstance(document.get("results"), list):
            inside = path.parent != run.path
            name = path.parent.name if inside else path.stem
            settings = document.get("settings")
            checkpoint = settings.get("checkpoint") if isinstance(settings, dict) and not inside else None
            files.append(EvaluationFile(f"{name} ({Path(str(checkpoint)).stem})" if checkpoint else name, document))
    return files


def _name(run: TrainingRun, path: Path) -> str:
    return path.relative_to(run.path).as_posix()
