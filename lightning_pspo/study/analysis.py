"""Compute the results of a study from the files of its cells alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.comparison import ArmComparison, EvaluatedRun, ProblemKey, compare, read_run
from lightning_pspo.report.curves import Curves, read_curves
from lightning_pspo.statistics import Estimate, compare_arms, holm, mean_interval, t_quantile, wilson_interval
from lightning_pspo.study.cells import CELLS, altered_files, read_done, read_settings, unmeasured
from lightning_pspo.study.design import Study, Variant

MEASURES = {
    "retained": ("trust/retained", "mean"),
    "ratio_p01": ("trust/ratio_p01", "min"),
    "ratio_p99": ("trust/ratio_p99", "max"),
    "ratio_max": ("trust/ratio_max", "max"),
    "would_clip": ("trust/would_clip", "mean"),
    "kl_last_update": ("", "mean"),  # of the rollout's last update, the key depends on their number
    "grad_norm": ("train/grad_norm", "mean"),
    "norm_clipped": ("trust/clip_bound_share", "mean"),
    "entropy": ("train/entropy", "last"),
    "length_tokens": ("completion/length_tokens", "last"),
    "truncated": ("completion/truncated", "last"),
    "train_accuracy": ("train/accuracy", "last"),
}
"""Name -> log key, and how the rollouts of a run become one number; extremes of an arm are those of all its runs."""

_MORE = re.compile(r"judge/.*|val/.*/(prompt_repeated|text_after_answer|truncated_correct)")  # last values
COLLAPSED = 0.5  # share of its best accuracy below which a run that ends there has collapsed
DETECTABLE = 1.3  # critical values that a true difference needs to be found in 80 of 100 studies, at 2 to 5 seeds
_REDUCE: Mapping[str, Any] = {"mean": np.mean, "min": np.min, "max": np.max, "last": lambda values: values[-1]}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What the files of one finished cell say."""

    seed: int
    validations: Mapping[int, EvaluatedRun]  # rollout -> verdicts, of the source and temperature compared, in order
    measures: Mapping[str, float]

    @cached_property
    def accuracy(self) -> dict[int, float]:
        """Rollout -> accuracy, in order."""
        return {rollout: float(np.mean([*scores_of(run).values()])) for rollout, run in self.validations.items()}

    @property
    def first(self) -> EvaluatedRun:
        """The validation before training."""
        return self.validations[min(self.validations)]

    @property
    def final(self) -> EvaluatedRun:
        """The last validation."""
        return self.validations[max(self.validations)]

    @property
    def best(self) -> EvaluatedRun:
        """The best validation, the first of equals."""
        return self.validations[max(self.accuracy, key=lambda rollout: self.accuracy[rollout])]

    @property
    def has_collapsed(self) -> bool:
        """Whether it ended far below its best."""
        final, best = self.accuracy[max(self.accuracy)], max(self.accuracy.values())
        return final < COLLAPSED * best


def scores_of(run: EvaluatedRun) -> Mapping[ProblemKey, float]:
    """Return the scores of a run of which only what is compared is left."""
    return next(iter(run.scores.values()))


def read_cell(folder: Path, seed: int, source: str | None) -> RunResult:
    """Read a finished cell.

    Raises:
        InputError: Its files are missing or cannot be read.
    """
    files = sorted(folder.glob(f"validations/rollout={'[0-9]' * 6}.jsonl"))
    runs = {int(file.stem.partition("=")[2]): read_run(file) for file in files if file.is_file()}
    if len(runs) < 2:
        raise InputError(f"{folder} must hold validations before and after training, got {len(runs)}.")
    settings = list(runs[max(runs)].scores)
    chosen = next((pair for pair in settings if source in (None, pair[0])), None)
    if chosen is None:
        raise InputError(f"`source` must be one of {sorted({name for name, _ in settings})}, got {source!r}.")
    only = {
        # A name in place of the file's digest: two runs that have both collapsed may have written the same verdicts.
        rollout: replace(run, scores={chosen: run.scores.get(chosen, {})}, digest=f"seed {seed}")
        for rollout, run in sorted(runs.items())
    }
    _check_problems([*only.values()])
    if not (curves := read_curves(folder / "logs")):
        raise InputError(f"{folder / 'logs'} must hold the curves of the run, got none.")
    return RunResult(seed=seed, validations=only, measures=measures(curves))


def _check_problems(runs: Sequence[EvaluatedRun]) -> None:
    """Refuse runs that are not about the same problems, such as of a file from which rows were cut."""
    first, *others = [scores_of(run).keys() for run in runs]
    for run, problems in zip(runs[1:], others, strict=True):
        if odd := first ^ problems:
            raise InputError(
                f"{run.path} must have the problems of {runs[0].path}, but {len(odd)} are in one of them only, such as "
                f"{min(odd)[0]!r}."
            )


def measures(curves: Curves) -> dict[str, float]:
    """Return one number per measure that the run has logged.

    >>> steps = np.array([4.0, 8.0])
    >>> measures({"train/entropy": (steps, np.array([0.5, 0.25])), "trust/ratio_max": (steps, np.array([3.0, 2.0]))})
    {'ratio_max': 3.0, 'entropy': 0.25}
    """
    updates = [int(key.rpartition("_")[2]) for key in curves if key.startswith("trust/kl_update_")]
    last_update = f"trust/kl_update_{max(updates, default=0)}"
    more = {key: (key, "last") for key in curves if _MORE.fullmatch(key)}
    return {
        name: float(_REDUCE[how](curves[key or last_update][1]))
        for name, (key, how) in (MEASURES | more).items()
        if (key or last_update) in curves
    }


def analyse(study: Study, root: Path) -> tuple[dict[str, Any], list[ArmComparison]]:
    """Return all results of a study as plain values, and its comparisons.

    Raises:
        InputError: No cell is finished, or a finished one cannot be read.
    """
    variants = study.variants()
    cells = _read_cells(study, root, variants)
    runs = cells.runs
    points: dict[str, list[Variant]] = {}
    for variant in variants:
        points.setdefault(variant.point, []).append(variant)
    for members in points.values():
        if finals := [run.final for variant in members for run in runs.get(variant.name, ())]:
            _check_problems(finals)
    comparisons = _compared(study, points, runs)
    tests = sum(min(comparison.runs) > 1 for members in comparisons.values() for comparison in members)
    source, temperature = next(iter(next(iter(runs.values()))[0].final.scores))
    results = {
        "title": study.title,
        "source": source,
        "temperature": temperature,
        "problems": len(next(iter(runs.values()))[0].final.scores[source, temperature]),
        "control": study.control_arm,
        "seeds": list(study.seeds),
        "cells": {"planned": len(variants) * len(study.seeds), "done": sum(map(len, runs.values()))},
        "missing": cells.missing,
        "altered": cells.altered,
        "same_weights": [names for names in cells.by_weights.values() if len(names) > 1],
        "points": [
            {
                "point": point,
                "arms": {variant.arm: _arm(runs[variant.name]) for variant in members if variant.name in runs},
                "comparisons": [_comparison(comparison, tests) for comparison in comparisons.get(point, [])],
            }
            for point, members in points.items()
        ],
        "runs": {
            f"{name}/seed={run.seed}": {
                "accuracy": {str(rollout): value for rollout, value in run.accuracy.items()},
                "collapsed": run.has_collapsed,
                "measures": dict(run.measures),
            }
            for name, members in runs.items()
            for run in members
        },
    }
    labelled = [
        replace(comparison, second=f"{comparison.second} {point}".strip())
        for point, members in comparisons.items()
        for comparison in members
    ]
    return _plain(results), labelled


@dataclass(frozen=True)
class _Cells:
    """What the folders of a study hold."""

    runs: dict[str, list[RunResult]] = field(default_factory=dict)  # variant -> its finished cells
    missing: list[str] = field(default_factory=list)  # cells that are not finished
    altered: list[str] = field(default_factory=list)  # files that are not as their runs left them
    by_weights: dict[str, list[str]] = field(default_factory=dict)  # digest of weights -> cells that ended with them


def _read_cells(study: Study, root: Path, variants: Sequence[Variant]) -> _Cells:
    cells = _Cells()
    for variant in variants:
        for seed in study.seeds:
            name = f"{variant.name}/seed={seed}"
            if done := read_done(folder := root / CELLS / name):
                altered = altered_files(folder, name)
                cells.altered.extend(f"{name}/{file}" for file in altered)
                try:
                    if lacking := unmeasured(folder, read_settings(folder)):
                        raise InputError(f"{folder} must hold {lacking}, which is missing.")
                    cells.runs.setdefault(variant.name, []).append(read_cell(folder, seed, study.source))
                except InputError as error:
                    if not altered:
                        raise
                    mend = f"restore {', '.join(altered)}, altered since the run, or delete {folder} to run it again"
                    raise InputError(f"{str(error).rstrip('.')}: {mend}.") from error
                if weights := done.get("weights"):
                    cells.by_weights.setdefault(weights, []).append(name)
            else:
                cells.missing.append(name)
        if len({tuple(run.accuracy) for run in cells.runs.get(variant.name, ())}) > 1:
            raise InputError(f"{root / CELLS / variant.name}: all seeds must have validations after the same rollouts.")
    if not cells.runs:
        raise InputError(f"{root} has no finished cell: run the study first.")
    return cells


def _compared(
    study: Study, points: Mapping[str, Sequence[Variant]], runs: Mapping[str, Sequence[RunResult]]
) -> dict[str, list[ArmComparison]]:
    """Compare each arm with the control at its point, seed by seed; p-values are adjusted for all tests."""
    comparisons: dict[str, list[ArmComparison]] = {}
    for point, members in points.items():
        finals = {variant.arm: {run.seed: run.final for run in runs.get(variant.name, ())} for variant in members}
        control = finals.pop(study.control_arm)
        for name, others in finals.items():
            if seeds := [seed for seed in control if seed in others]:
                arms = {study.control_arm: [control[seed] for seed in seeds], name: [others[seed] for seed in seeds]}
                comparisons.setdefault(point, []).extend(compare(arms, paired_runs=True))
    tested = [comparison for members in comparisons.values() for comparison in members if min(comparison.runs) > 1]
    adjusted = dict(zip(map(id, tested), holm([comparison.difference.p_value for comparison in tested]), strict=True))
    return {
        point: [replace(member, adjusted_p=adjusted.get(id(member), member.adjusted_p)) for member in members]
        for point, members in comparisons.items()
    }


def _comparison(comparison: ArmComparison, tests: int) -> dict[str, Any]:
    difference = comparison.difference
    estimate, pairs = difference.estimate, min(comparison.runs)
    tested = dict.fromkeys(("p", "p_holm", "detectable"))
    if pairs > 1:  # one alone says nothing of the next
        half = max(estimate.value - estimate.low, estimate.high - estimate.value)
        stricter = t_quantile(1 - 0.025 / tests, pairs - 1) / t_quantile(0.975, pairs - 1)  # Holm's first step
        detectable = min(1.0, DETECTABLE * stricter * half)
        tested = {"p": difference.p_value, "p_holm": comparison.adjusted_p, "detectable": detectable}
    return {
        "arm": comparison.second,
        "runs": list(comparison.runs),
        "difference": _interval(estimate),
        **tested,
    }


def _arm(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return what is reported of an arm at a point."""
    collapsed = sum(run.has_collapsed for run in runs)
    low, high = wilson_interval(collapsed, len(runs))
    names = list(dict.fromkeys(name for run in runs for name in run.measures))
    rollouts = sorted(set.intersection(*(set(run.accuracy) for run in runs)))
    by_rollout = np.array([[run.accuracy[rollout] for rollout in rollouts] for run in runs])  # (runs, validations)
    return {
        "runs": len(runs),
        "seeds": [run.seed for run in runs],
        "before": _accuracy([run.first for run in runs]),
        "final": _accuracy([run.final for run in runs]),
        "final_by_run": by_rollout[:, -1].tolist(),
        "best": _accuracy([run.best for run in runs]),
        "collapsed": {"value": collapsed / len(runs), "low": low, "high": high},
        "measures": {
            name: _over_runs(name, values)
            for name in names
            if (values := [run.measures[name] for run in runs if name in run.measures])
        },
        "curve": {
            "rollouts": rollouts,
            "mean": by_rollout.mean(axis=0).tolist(),
            "low": by_rollout.min(axis=0).tolist(),
            "high": by_rollout.max(axis=0).tolist(),
        },
    }


def _accuracy(runs: Sequence[EvaluatedRun]) -> dict[str, float]:
    """Return the mean accuracy of runs with its interval, clustered by problem and by run."""
    scores = [scores_of(run) for run in runs]
    table = np.array([[run[problem] for problem in scores[0]] for run in scores])  # (runs, problems)
    estimate = compare_arms(np.zeros_like(table), table, paired_runs=True).estimate
    return {"value": estimate.value, "low": max(0.0, estimate.low), "high": estimate.high}


def _over_runs(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return an arm's number of a measure: the mean of its runs, or the extreme of all where each run has its own."""
    how = MEASURES.get(name, ("", "last"))[1]
    if how in ("min", "max"):
        return {"value": float(_REDUCE[how](values)), "low": min(values), "high": max(values)}
    return _interval(mean_interval(values))


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _plain(value: Any) -> Any:
    """Return a value for JSON, with null for what is not finite and ten digits of what is."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if isfinite(value) else None
    return value


def write_results(results: Mapping[str, Any]) -> bytes:
    """Return the file ``results.json``."""
    return (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
