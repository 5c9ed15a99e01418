"""Which of several arms answers the same problems better: from the samples that evaluations wrote."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.data.sources.rows import read_rows
from lightning_pspo.errors import InputError
from lightning_pspo.grading import Verdict
from lightning_pspo.statistics import Difference, compare_arms, holm

SAMPLES = "samples.jsonl"
_FIELDS = ("source", "temperature", "id", "question", "answer", "verdict")
_CONDITIONS = ("system_prompt", "template", "max_new_tokens", "top_p", "grading_mode")

Setting = tuple[str, float]
"""Source and temperature."""


@dataclass(frozen=True)
class Run:
    """The samples of one evaluation.

    Attributes:
        path: Where they come from.
        scores: Setting -> problem (id, question, answer) -> share of correct samples.
        settings: What they were made with, from the file beside them; empty where there is none.
        digest: SHA-256 of the file, in hexadecimal.
    """

    path: Path
    scores: Mapping[Setting, Mapping[tuple[str, str, str], float]]
    settings: Mapping[str, Any]
    digest: str


@dataclass(frozen=True)
class Comparison:
    """One arm against the first, on one source at one temperature.

    Attributes:
        source: Name of the source.
        temperature: Sampling temperature.
        first: Name of the first arm.
        second: Name of the other arm.
        runs: Number of runs in each.
        difference: The other's accuracy less the first's.
        adjusted_p: The p-value adjusted for all comparisons made (Holm).
        left_out: Problems that are not in every run and were left out.
    """

    source: str
    temperature: float
    first: str
    second: str
    runs: tuple[int, int]
    difference: Difference
    adjusted_p: float
    left_out: int

    def document(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)


def find_samples(path: Path) -> Path:
    """Return the file of samples that a path means: itself, in the folder, or the only one in ``evaluation/*``.

    Raises:
        InputError: There is none, or more than one.
    """
    if path.is_file():
        return path
    if (path / SAMPLES).is_file():
        return path / SAMPLES
    found = sorted(path.glob(f"evaluation/*/{SAMPLES}"))
    if len(found) == 1:
        return found[0]
    what = f"has several: {', '.join(str(file.parent) for file in found)}" if found else "has none"
    raise InputError(f"RUN must be a {SAMPLES} of scripts/evaluate.py or a folder with one, got {path}, which {what}.")


def read_run(path: Path) -> Run:
    """Read the samples of one evaluation.

    Raises:
        InputError: Naming file and row.
    """
    file = find_samples(path)
    counts: dict[Setting, dict[tuple[str, str, str], list[bool]]] = {}
    seen: set[tuple[Any, ...]] = set()
    for number, row in read_rows(file, lines=True):
        missing = [name for name in _FIELDS if name not in row]
        if missing:
            raise InputError(f"{file}, row {number}: must have the field {missing[0]!r}, got {sorted(map(str, row))}.")
        _check_row(row, f"{file}, row {number}")
        key = (str(row["source"]), float(row["temperature"]))
        problem = (str(row["id"]), str(row["question"]), str(row["answer"]))
        place = (*key, problem[0], row.get("sample", 0))
        if place in seen:
            raise InputError(f"{file}, row {number}: sample {place[-1]} of {problem[0]!r} must occur once.")
        seen.add(place)
        counts.setdefault(key, {}).setdefault(problem, []).append(row["verdict"] == "correct")
    if not counts:
        raise InputError(f"{file}: must have at least one sample, it is empty.")
    return Run(
        file,
        {
            key: {problem: sum(correct) / len(correct) for problem, correct in problems.items()}
            for key, problems in counts.items()
        },
        _read_settings(file.with_name(f"{file.name}.settings.json")),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _check_row(row: Mapping[str, Any], where: str) -> None:
    """Raise InputError, beginning with ``where``, for a value that cannot be one of an evaluation's."""
    temperature, sample, verdict = row["temperature"], row.get("sample", 0), row["verdict"]
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not is_number or not 0.0 <= temperature <= sys.float_info.max:
        raise InputError(f"{where}: `temperature` must be a number, at least 0, got {str(temperature)[:40]}.")
    if not isinstance(sample, int) or isinstance(sample, bool):
        raise InputError(f"{where}: `sample` must be an integer, got {str(sample)[:40]}.")
    if verdict not in list(Verdict):
        raise InputError(f"{where}: `verdict` must be one of {', '.join(Verdict)}, got {str(verdict)[:40]!r}.")


def _read_settings(file: Path) -> Mapping[str, Any]:
    """Return what the samples beside a file were made with; nothing if there is no such file."""
    if not file.exists():
        return {}
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} must hold the settings of the samples beside it: {error}.") from None
    if not isinstance(settings, dict):
        raise InputError(f"{file} must hold the settings of the samples beside it, got {str(settings)[:40]!r}.")
    return settings


def different_settings(runs: Sequence[Run]) -> list[str]:
    """Return in what the runs were asked or graded differently, as far as their settings are known.

    Prompt, token limit and grading mode must be the same, and the nucleus where anything was sampled: else a difference
    of accuracies would not be one of the weights alone. Checkpoint, seed, precision and number of samples may differ.

    >>> same = {("toy", 0.0): {("p0", "1 + 1?", "2"): 1.0}}
    >>> lenient = Run(Path("a"), same, {"grading_mode": "lenient", "top_p": 0.9}, "a1")
    >>> different_settings([lenient, Run(Path("b"), same, {"grading_mode": "strict", "top_p": 1.0}, "b2")])
    ["`grading_mode` is 'lenient' in a and 'strict' in b"]
    """
    sampled = any(temperature > 0.0 for _, temperature in _shared(runs))
    found = []
    for name in _CONDITIONS:
        known = [(run.path, run.settings[name]) for run in runs if name in run.settings]
        odd = next(((path, value) for path, value in known if value != known[0][1]), None)
        if odd is not None and (sampled or name != "top_p"):
            found.append(f"`{name}` is {known[0][1]!r} in {known[0][0]} and {odd[1]!r} in {odd[0]}")
    return found


def compare(
    arms: Mapping[str, Sequence[Run]],
    *,
    intersect: bool = False,
    any_settings: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every arm with the first, on each source and temperature that all runs have.

    Args:
        arms: Name -> its runs, at least two arms with at least one run each.
        intersect: Leave out problems that are not in every run, instead of refusing them.
        any_settings: Compare runs that were asked or graded differently, instead of refusing them.
        resamples: Of bootstrap and test.
        seed: Of both.

    Raises:
        InputError: An arm has no run, a run is there twice, or the runs share no source and temperature, have other
            problems, or were asked or graded differently.
    """
    _check_arms(arms)
    if len(arms) < 2:
        raise InputError(f"there must be at least two arms to compare, got {list(arms)}.")
    runs = [run for members in arms.values() for run in members]
    settings = _shared(runs)
    if not settings:
        had = "; ".join(f"{run.path}: {', '.join(f'{s} at T={t:g}' for s, t in run.scores)}" for run in runs)
        raise InputError(f"the runs must share a source and temperature, got {had}.")
    if not any_settings and (different := different_settings(runs)):
        raise InputError(
            f"the runs must be asked and graded alike, but {'; '.join(different)}. --any-settings compares them anyway."
        )
    found: list[tuple[Setting, str, Difference, int]] = []
    first = next(iter(arms))
    for setting in settings:
        problems, left_out = _common(runs, setting, intersect)
        tables = {name: _table(members, setting, problems) for name, members in arms.items()}
        for second in list(arms)[1:]:
            difference = compare_arms(tables[first], tables[second], resamples, seed)
            found.append((setting, second, difference, left_out))
    adjusted = holm([difference.p_value for _, _, difference, _ in found])
    return [
        Comparison(*setting, first, second, (len(arms[first]), len(arms[second])), difference, p_value, left_out)
        for (setting, second, difference, left_out), p_value in zip(found, adjusted, strict=True)
    ]


def _check_arms(arms: Mapping[str, Sequence[Run]]) -> None:
    """Raise InputError for an arm without runs, and for a run that would count as several seeds."""
    owners: dict[Path, str] = {}
    for name, members in arms.items():
        if not members:
            raise InputError(f"arm {name!r} must have at least one run, got none.")
        contents: dict[str, Path] = {}
        for run in members:
            path = run.path.resolve()
            if path in owners:
                raise InputError(f"{run.path} must be given once, got it in arm {owners[path]!r} and in {name!r}.")
            if run.digest in contents:
                raise InputError(
                    f"arm {name!r} must have different runs, but {run.path} is a copy of {contents[run.digest]}."
                )
            owners[path], contents[run.digest] = name, run.path


def _shared(runs: Sequence[Run]) -> list[Setting]:
    """Return the settings that all runs have, in the first one's order."""
    return [setting for setting in runs[0].scores if all(setting in run.scores for run in runs)]


def _common(runs: Sequence[Run], setting: Setting, intersect: bool) -> tuple[list[tuple[str, str, str]], int]:
    """Return the problems that all runs have, and how many others there are."""
    sets = [run.scores[setting].keys() for run in runs]
    everywhere = [problem for problem in sets[0] if all(problem in other for other in sets)]
    left_out = len(set().union(*sets)) - len(everywhere)
    name = f"{setting[0]} at T={setting[1]:g}"
    if left_out and not intersect:
        run, odd = next(
            (run, problem) for run in runs for problem in run.scores[setting] if problem not in set(everywhere)
        )
        raise InputError(
            f"{name}: all runs must have the same problems, but {left_out} are not in every run (such as {odd[0]!r} of "
            f"{run.path}; the question and the answer must be the same too). --intersect compares the others."
        )
    if len(everywhere) < 2:
        raise InputError(f"{name}: the runs must share at least 2 problems, they share {len(everywhere)}.")
    return everywhere, left_out


def _table(runs: Sequence[Run], setting: Setting, problems: Sequence[tuple[str, str, str]]) -> NDArray[np.float64]:
    """Return (runs, problems) shares of correct samples."""
    return np.array([[run.scores[setting][problem] for problem in problems] for run in runs])
