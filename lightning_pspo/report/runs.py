"""What a run's folder holds for a report; what is missing or damaged is said, and nothing else fails by it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from lightning_pspo.report.curves import Curves, read_curves

SAMPLES_KEPT = 6  # training completions that are read of either end of a run
_MARKS = ("config.yaml", "summary.json", "evaluation.json", "completions.jsonl", "judgements.jsonl", "checkpoints")
_JUDGE_SUMMARIES = ("judgements.summary.json", "judge_summary.json", "judge.json", "judgements.json")
_Read = TypeVar("_Read")


class ReportError(ValueError):
    """What a report was asked for cannot be had; the message names the thing, the rule and the value."""


@dataclass(frozen=True)
class Evaluation:
    """A file of `EvaluationReport`.

    Attributes:
        name: What was evaluated: the checkpoint's folder, or the file.
        document: Its contents.
    """

    name: str
    document: Mapping[str, Any]


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        path: Its folder.
        config: Settings it last went on with; empty where there are none.
        curves: Log key -> optimiser steps and values.
        summary: `RunSummary`'s document; empty where the run did not end.
        evaluations: Of ``validate``, ``test`` and ``scripts/evaluate.py``.
        training: First and last completions that `CompletionTable` wrote, in order.
        environment: What `RunReport` kept of machine and versions.
        judge: Rows of ``judgements.jsonl``.
        judge_summary: The judge's own summary.
        notes: What is missing, damaged or odd, as sentences.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    training: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    judge: Sequence[Mapping[str, Any]] = ()
    judge_summary: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def setting(self, name: str, default: Any = None) -> Any:
        """Return a setting by its dotted name, ``default`` where it is not known.

        >>> Run(Path("r"), {"model": {"group_size": 8}}).setting("model.group_size")
        8
        """
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value


def finite(value: Any) -> float | None:
    """Return a number, None for anything else: what other programs wrote may be anything.

    >>> finite(3), finite(float("nan")), finite("3"), finite(True), finite(10**400)
    (3.0, None, None, None, None)
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def pair(value: Any) -> tuple[float | None, float | None]:
    """Return the bounds of an interval, as far as they are numbers."""
    low, high = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return finite(low), finite(high)


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        ReportError: It is no folder, or holds no run.
    """
    _check_is_run(path)
    run = Run(path)
    run.config = _read_config(run)
    run.curves = _attempt(run, lambda: read_curves(path), {}, "logs")
    run.summary = _read_json(run, path / "summary.json")
    run.evaluations = _read_evaluations(run)
    run.training = _ends(_read_lines(run, path / "completions.jsonl"))
    run.curves = with_measurement_before(run)
    run.environment = _read_json(run, path / "environment.json")
    run.judge = _read_lines(run, path / "judgements.jsonl")
    run.judge_summary = next(filter(None, (_read_json(run, path / name) for name in _JUDGE_SUMMARIES)), {})
    _say_what_is_missing(run)
    return run


def with_measurement_before(run: Run) -> Curves:
    """Return the run's curves, those of validation with the summary's measurement before training as their step 0."""
    curves = dict(run.curves)
    temperatures, source = run.setting("model.evaluation.temperatures"), run.summary.get("source")
    first = finite(temperatures[0]) if isinstance(temperatures, list) and temperatures else None
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
            suffix = "" if temperature == first else f"@t{temperature:g}"
            known = curves.get(curve := f"val/{source}/{name}{suffix}")
            if known is not None and known[0][0] > 0:
                curves[curve] = (np.insert(known[0], 0, 0.0), np.insert(known[1], 0, value))
    return curves


def _check_is_run(path: Path) -> None:
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        raise ReportError(f"RUN must be the folder of a run, got {path}, which is {what}.")
    if any((path / mark).exists() for mark in _MARKS) or any(path.glob("logs/**/metrics.csv")):
        return
    if any(path.glob("logs/**/events.out.tfevents.*")) or any(path.glob("evaluation/*/evaluation.json")):
        return
    below = sorted({mark.parent for name in _MARKS[:2] for mark in path.glob(f"*/{name}")})
    hint = f" Runs in it: {' '.join(map(str, below[:12]))}." if below else ""
    raise ReportError(f"RUN must be the folder of a run, got {path}, which has no settings, logs or results.{hint}")


def _attempt(run: Run, read: Callable[[], _Read], otherwise: _Read, what: str) -> _Read:
    """Return what ``read`` gives; where it fails, note why and return ``otherwise``."""
    try:
        return read()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        run.notes.append(f"{what} could not be read: {' '.join(str(error).split())[:200]}.")
        return otherwise


def _read_json(run: Run, path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: Any = _attempt(run, lambda: json.loads(path.read_bytes()), {}, _name(run, path))
    if not isinstance(found, dict):
        run.notes.append(f"{_name(run, path)} holds no JSON object.")
        return {}
    return found


def _read_lines(run: Run, path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a file of JSON lines; those that are none are counted in a note."""
    rows: list[Mapping[str, Any]] = []
    bad = 0
    nothing: list[bytes] = []
    lines = _attempt(run, lambda: path.read_bytes().splitlines(), nothing, _name(run, path)) if path.is_file() else ()
    for line in lines:
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            bad += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += row is not None
    if bad:
        run.notes.append(f"{bad} line{'s' if bad > 1 else ''} of {_name(run, path)} could not be read.")
    return rows


def _read_config(run: Run) -> Mapping[str, Any]:
    """Return the last settings of the run: ``config.yaml``, or the highest ``config-<n>.yaml`` of a resumed one."""
    found = {1: run.path / "config.yaml"} if (run.path / "config.yaml").is_file() else {}
    for path in run.path.glob("config-*.yaml"):
        if match := re.fullmatch(r"config-(\d+)\.yaml", path.name):
            found[int(match[1])] = path
    for number in sorted(found, reverse=True):
        path = found[number]
        config: Any = _attempt(run, partial(_load_yaml, path), None, path.name)
        if isinstance(config, dict):
            if number > 1:
                run.notes.append(f"went on with other settings: those shown are of {path.name}.")
            return config
    return {}


def _read_evaluations(run: Run) -> list[Evaluation]:
    paths = [*sorted(run.path.glob("evaluation*.json"), key=_natural)]
    paths += sorted(run.path.glob("evaluation/*/evaluation*.json"), key=_natural)
    found = []
    for path in paths:
        document = _read_json(run, path)
        if isinstance(document.get("results"), list):
            inside = path.parent != run.path
            name = path.parent.name if inside else path.stem
            settings = document.get("settings")
            checkpoint = settings.get("checkpoint") if isinstance(settings, dict) and not inside else None
            found.append(Evaluation(f"{name} ({Path(str(checkpoint)).stem})" if checkpoint else name, document))
    return found


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that sorts ``evaluation-10`` behind ``evaluation-9``."""
    parts = re.split(r"(\d+)", path.as_posix().removesuffix(".json"))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _ends(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list(rows if len(rows) <= 2 * SAMPLES_KEPT else [*rows[:SAMPLES_KEPT], *rows[-SAMPLES_KEPT:]])


def _say_what_is_missing(run: Run) -> None:
    if not run.config and not (run.path / "config.yaml").exists():
        run.notes.append("no config.yaml: its settings are not known, so that it is an arm of its own.")
    if not run.curves:
        run.notes.append("no logs: no curves. They come from metrics.csv or the TensorBoard files below its folder.")
    if not run.summary and not (run.path / "summary.json").exists():
        reason = "it was stopped, has not ended, or ran without RunSummary"
        run.notes.append(f"no summary.json: {reason}.")


def _name(run: Run, path: Path) -> str:
    return path.relative_to(run.path).as_posix()


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads settings as plain values; a tag that Python objects are written with becomes its text."""


def _load_yaml(path: Path) -> Any:
    return yaml.load(path.read_bytes(), Loader=_PlainLoader)  # only plain values are made


def _plain(loader: Any, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return str(node.value)


_PlainLoader.add_multi_constructor("", _plain)
