"""Read a run's scalars from the CSV or TensorBoard logger; steps that a resumed run repeated count once."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.files import lines_of, open_file

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
Curves = dict[str, Series]
"""Log key -> (steps, values), steps strictly increasing, values finite."""

_Points = dict[str, dict[int, float]]
_EVALUATION = ("val/", "test/")
_LARGEST = 1e100  # so that sums, differences and logarithms of values stay finite
_MAX_STEP = 10**15
_IGNORED = ("epoch", "hp_metric", "step")


def finite(value: Any) -> float | None:
    """Return a number that a chart can show, None for anything else.

    >>> finite(3), finite(float("nan")), finite("3"), finite(True), finite(10**400), finite(5e-324)
    (3.0, None, None, None, None, 0.0)
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
        return None
    return float(value) if abs(value) > 1 / _LARGEST else 0.0


def read_curves(root: Path) -> Curves:
    """Return the scalars of the run in a folder, as they were logged."""
    return stitch(read_versions(root))


def read_versions(root: Path) -> list[_Points]:
    """Return the parts of the run in a folder, from the CSV logger's files or else from TensorBoard's."""
    versions = [_read_csv(path) for path in sorted(_below(root, "metrics.csv"), key=_version)]
    if not any(versions):
        files = sorted(_below(root, "events.out.tfevents.*"), key=_version)  # a folder's in the order of their times
        versions = [_read_events(path) for path in files]
    return versions


def stitch(versions: Iterable[Mapping[str, Mapping[int, float]]]) -> Curves:
    """Return the curves of a run from those of its parts, the earliest first.

    A part that trained continued from a checkpoint: for each key, what earlier parts have from its first step on is
    dropped. A part without training, such as a late evaluation, only adds missing steps, and never step 0, where an
    evaluation of a checkpoint writes.

    >>> first = {"train/reward": {4: 0.1, 8: 0.2, 12: 0.3}}
    >>> {key: (x.tolist(), y.tolist()) for key, (x, y) in stitch([first, {"train/reward": {8: 0.5}}]).items()}
    {'train/reward': ([4.0, 8.0], [0.1, 0.5])}
    """
    merged: _Points = {}
    for version in versions:
        trains = any(not key.startswith(_EVALUATION) for key, points in version.items() if points)
        for key, points in version.items():
            known = merged.setdefault(key, {})
            if trains and points:
                first = min(points)
                for step in [step for step in known if step >= first]:
                    del known[step]
            for step, value in points.items():
                if trains or (step and step not in known):
                    known[step] = value
    curves: Curves = {}
    for key, points in merged.items():
        if points:
            steps = sorted(points)
            curves[key] = (np.array(steps, dtype=float), np.array([points[step] for step in steps], dtype=float))
    return curves


def _below(root: Path, pattern: str) -> list[Path]:
    """Return the logs of this run, without those of runs and evaluations inside its folder."""
    others = {path.parent for path in root.glob("*/**/config.yaml")} | {root / "evaluation", root / "evaluations"}
    return [path for path in root.rglob(pattern) if others.isdisjoint(path.parents) and path.is_file()]


def _version(path: Path) -> tuple[int, list[str | int]]:
    """Return a key that sorts ``version_10`` behind ``version_9``, and events.out.tfevents.7.10 behind ...7.9."""
    versions = re.findall(r"version_(\d{1,9})", path.as_posix())
    parts = re.split(r"([0-9]+)", path.as_posix())  # text and digits by turns
    return (int(versions[-1]) if versions else 0, [int(part) if part.isdigit() else part for part in parts])


def _read_csv(path: Path) -> _Points:
    """Return key -> step -> value of a CSVLogger's file, without lines that a crash cut short."""
    points: _Points = {}
    with open_file(path) as file:
        lines = lines_of(file, path.name)
        rows = csv.reader(line.replace(b"\0", b"").decode(errors="replace") for line in lines)
        keys = next(_readable(rows), [])
        if "step" not in keys:
            return {}
        at = keys.index("step")
        columns = [(index, key, points.setdefault(key, {})) for index, key in enumerate(keys) if _is_curve(key)]
        for row in _readable(rows):
            step = _number(row[at]) if len(row) == len(keys) else None
            if step is None or not 0 <= step < _MAX_STEP:
                continue
            for index, _, known in columns:
                if (value := _number(row[index])) is not None:
                    known[int(step)] = value
    return {key: known for key, known in points.items() if known}


def _readable(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield rows up to the first that is not CSV."""
    with contextlib.suppress(csv.Error):
        yield from rows


def _read_events(path: Path) -> _Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    points: _Points = {}
    for key in events.Tags()["scalars"]:
        if _is_curve(key):
            scalars = ((event.step, finite(float(event.value))) for event in events.Scalars(key))
            points[key] = {step: value for step, value in scalars if value is not None and 0 <= step < _MAX_STEP}
    return {key: known for key, known in points.items() if known}


def _is_curve(key: str) -> bool:
    return key not in _IGNORED and not key.startswith("test/")


def _number(cell: str) -> float | None:
    try:
        return finite(float(cell))
    except ValueError:
        return None
