"""What the runs were made with: settings, the differences between arms, versions and machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_pspo.report.arms import Arm, differences, setting_rows
from lightning_pspo.report.runs import TrainingRun


def settings(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return what differs between arms, and the full settings of each."""
    runs = [f" ({arm.runs[0].path.resolve().name})" if len(arm.runs) > 1 else "" for arm in arms]
    titles = [f"All settings of {arm.name}{run}" for arm, run in zip(arms, runs, strict=True)]
    values = [setting_rows(arm.runs[0].config) for arm in arms]
    return {"differences": differences(arms), "all": list(zip(arms, titles, values, strict=True))}


def environments(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return versions and machine of every run, as far as they are known, and the runs of which they are not."""
    known: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in (run for arm in arms for run in arm.runs):
        known.setdefault(tuple(_environment(run)), []).append(run.label)
    missing = ", ".join(known.pop((), []))
    tables = [(f"Environment of {', '.join(names)}", values) for values, names in known.items()]
    return {"known": tables, "missing": missing}


def _environment(run: TrainingRun) -> list[tuple[str, str]]:
    """Return what is known: ``environment.json``, else the versions in an evaluation."""
    if run.environment:
        return setting_rows(run.environment)
    for evaluation in run.evaluations:
        versions = evaluation.document.get("versions")
        if isinstance(versions, dict) and versions:
            return [(f"{name} (of {evaluation.name})", value) for name, value in setting_rows(versions)]
    return []
