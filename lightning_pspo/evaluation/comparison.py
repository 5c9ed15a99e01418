"""Compare arms, each one or more evaluated runs, on the same problems; needs no torch."""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.files import read_bounded, read_objects
from lightning_pspo.grading import Verdict
from lightning_pspo.statistics import Difference, compare_arms, holm

SAMPLES = "samples.jsonl"
_FIELDS = ("source", "temperature", "id", "question", "answer", "verdict")
_PROMPT = ("system_prompt", "template", "chat_template", "template_arguments", "few_shot", "answer_prefix")
_CONDITIONS = (*_PROMPT, "max_new_tokens", "top_p", "grading_mode")

Setting = tuple[str, float]
"""Source and temperature."""
ProblemKey = tuple[str, str, str]
"""Id, question and answer of a problem."""


@dataclass(frozen=True)
class EvaluatedRun:
    """The samples of one evaluation."""

    path: Path  # file of the samples
    scores: Mapping[Setting, Mapping[ProblemKey, float]]  # setting -> problem -> share of correct samples
    settings: Mapping[str, Any]  # of the evaluation, from the file beside the samples; empty without that file
    digest: str  # SHA-256 of the file, in hexadecimal


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the first, on one source at one temperature."""

    source: str  # name of the source
    temperature: float  # sampling temperature
    first: str  # name of the first arm
    second: str  # name of the other arm
    runs: tuple[int, int]  # number of runs in each
    difference: Difference  # accuracy of the second arm minus that of the first
    adjusted_p: float  # the p-value adjusted for all comparisons made (Holm)
    left_out: int  # number of problems that are missing from some run and were left out


def find_samples(path: Path) -> Path:
    """Find the samples of a path: the file itself, the file in the folder, or that of its only ``evaluation/*``.

    Raises:
        InputError: There is no such file, or several.
    """
    if path.is_file():
        return path
    if (path / SAMPLES).is_file():
        return path / SAMPLES
    files = sorted(path.glob(f"evaluation/*/{SAMPLES}"))
    if len(files) == 1:
        return files[0]
    problem = f"has several: {', '.join(str(file.parent) for file in files)}" if files else "has none"
    raise InputError(
        f"RUN must be a {SAMPLES} of `lightning-pspo evaluate` or a folder that holds it, got {path}, which {problem}."
    )


def read_run(path: Path) -> EvaluatedRun:
    """Read the samples of one evaluation.

    Raises:
        InputError: The samples cannot be read; the message names file and row.
    """
    file = find_samples(path)
    verdicts: dict[Setting, dict[ProblemKey, list[bool]]] = {}
    seen: set[tuple[Any, ...]] = set()
    try:
        for number, _, row in read_objects(file, "line"):
            _check_row(row, f"{file}, row {number}")
            setting = (str(row["source"]), float(row["temperature"]))
            problem = (str(row["id"]), str(row["question"]), str(row["answer"]))
            sample = (*setting, problem[0], row.get("sample", 0))
            if sample in seen:
                raise InputError(f"{file}, row {number}: sample {sample[-1]} of {problem[0]!r} must occur once.")
            seen.add(sample)
            verdicts.setdefault(setting, {}).setdefault(problem, []).append(row["verdict"] == "correct")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from None
    if not verdicts:
        raise InputError(f"{file}: must have at least one sample, it is empty.")
    return EvaluatedRun(
        file,
        {
            setting: {problem: sum(correct) / len(correct) for problem, correct in problems.items()}
            for setting, problems in verdicts.items()
        },
        _read_settings(file.with_name(f"{file.name}.settings.json")),
        _digest(file),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_row(row: Mapping[str, Any], where: str) -> None:
    """Refuse a row that no evaluation writes; the message begins with ``where``."""
    if missing := [name for name in _FIELDS if name not in row]:
        raise InputError(f"{where}: must have the field {missing[0]!r}, got {sorted(map(str, row))}.")
    temperature, sample, verdict = row["temperature"], row.get("sample", 0), row["verdict"]
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not is_number or not 0.0 <= temperature <= sys.float_info.max:
        raise InputError(f"{where}: `temperature` must be a number, at least 0, got {str(temperature)[:40]}.")
    if not isinstance(sample, int) or isinstance(sample, bool):
        raise InputError(f"{where}: `sample` must be an integer, got {str(sample)[:40]}.")
    if verdict not in list(Verdict):
        raise InputError(f"{where}: `verdict` must be one of {', '.join(Verdict)}, got {str(verdict)[:40]!r}.")


def _read_settings(file: Path) -> Mapping[str, Any]:
    """Return the settings of the samples beside ``file``; empty if it does not exist."""
    if not file.exists():
        return {}
    try:
        settings = json.loads(read_bounded(file))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} must hold the settings of the samples beside it: {one_line(error)}.") from None
    if not isinstance(settings, dict):
        raise InputError(f"{file} must hold the settings of the samples beside it, got {str(settings)[:40]!r}.")
    return settings


def different_settings(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return how the runs differ in prompt, token limit or grading, as far as their settings are known.

    If these differ, or top_p above temperature 0, a difference of accuracies is not due to the weights alone.
    Checkpoint, seed, precision and number of samples may differ.

    >>> same = {("toy", 0.0): {("p0", "1 + 1?", "2"): 1.0}}
    >>> lenient = EvaluatedRun(Path("a"), same, {"grading_mode": "lenient", "top_p": 0.9}, "a1")
    >>> strict = EvaluatedRun(Path("b"), same, {"grading_mode": "strict", "top_p": 1.0}, "b2")
    >>> different_settings([lenient, strict])
    ["`grading_mode` is 'lenient' in a and 'strict' in b"]
    """
    sampled = any(temperature > 0.0 for _, temperature in _shared(runs))
    different = []
    for name in _CONDITIONS:
        known = [(run.path, run.settings[name]) for run in runs if name in run.settings]
        odd = next(((path, value) for path, value in known if value != known[0][1]), None)
        if odd is not None and (sampled or name != "top_p"):
            values = [reprlib.repr(value) for _, value in (known[0], odd)]
            different.append(f"`{name}` is {values[0]} in {known[0][0]} and {values[1]} in {odd[0]}")
    return different


def compare(
    arms: Mapping[str, Sequence[EvaluatedRun]],
    *,
    intersect: bool = False,
    any_settings: bool = False,
    paired_runs: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[ArmComparison]:
    """Compare every arm with the first, on each source and temperature that all runs share.

    Args:
        arms: Name -> runs, at least two arms with at least one run each.
        intersect: Leave out problems that are missing from some run, instead of refusing them.
        any_settings: Compare runs with different prompts or grading, instead of refusing them.
        paired_runs: The runs of all arms belong together in their order, such as by seed.
        resamples: Resamples of bootstrap and test.
        seed: Seed of both.

    Raises:
        InputError: An arm has no run, a run occurs twice, or the runs share no source and temperature, have different
            problems, or were prompted or graded in different ways.
    """
    _check_arms(arms)
    runs = [run for members in arms.values() for run in members]
    settings = _shared(runs)
    if not settings:
        available = "; ".join(f"{run.path}: {', '.join(f'{s} at T={t:g}' for s, t in run.scores)}" for run in runs)
        raise InputError(f"the runs must share a source and temperature, got {available}.")
    if not any_settings and (different := different_settings(runs)):
        raise InputError(
            f"the runs must have the same prompt and grading, but {'; '.join(different)}. --any-settings compares them "
            "anyway."
        )
    first, *others = arms
    results: list[tuple[Setting, str, Difference, int]] = []
    for setting in settings:
        problems, left_out = _common(runs, setting, intersect)
        tables = {name: _table(members, setting, problems) for name, members in arms.items()}
        for second in others:
            difference = compare_arms(tables[first], tables[second], resamples, seed, paired_runs=paired_runs)
            results.append((setting, second, difference, left_out))
    adjusted = holm([difference.p_value for _, _, difference, _ in results])
    return [
        ArmComparison(*setting, first, second, (len(arms[first]), len(arms[second])), difference, p_value, left_out)
        for (setting, second, difference, left_out), p_value in zip(results, adjusted, strict=True)
    ]


def _check_arms(arms: Mapping[str, Sequence[EvaluatedRun]]) -> None:
    """Refuse fewer than two arms, an arm without runs, and a run that would count as several seeds."""
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
    if len(arms) < 2:
        raise InputError(f"there must be at least two arms to compare, got {list(arms)}.")


def _shared(runs: Sequence[EvaluatedRun]) -> list[Setting]:
    """Return the settings that all runs have, in the order of the first run."""
    return [setting for setting in runs[0].scores if all(setting in run.scores for run in runs)]


def _common(runs: Sequence[EvaluatedRun], setting: Setting, intersect: bool) -> tuple[list[ProblemKey], int]:
    """Return the problems that all runs have, and the number of other problems."""
    problems = [run.scores[setting].keys() for run in runs]
    common = [problem for problem in problems[0] if all(problem in keys for keys in problems)]
    left_out = len(set().union(*problems)) - len(common)
    name = f"{setting[0]} at T={setting[1]:g}"
    if left_out and not intersect:
        path, odd = next((run.path, odd) for run in runs for odd in run.scores[setting] if odd not in set(common))
        raise InputError(
            f"{name}: all runs must have the same problems, but {left_out} are not in every run (such as {odd[0]!r} of "
            f"{path}; the question and the answer must be the same too). --intersect compares the others."
        )
    if len(common) < 2:
        raise InputError(f"{name}: the runs must share at least 2 problems, they share {len(common)}.")
    return common, left_out


def _table(runs: Sequence[EvaluatedRun], setting: Setting, problems: Sequence[ProblemKey]) -> NDArray[np.float64]:
    """Return (runs, problems) shares of correct samples."""
    return np.array([[run.scores[setting][problem] for problem in problems] for run in runs])
