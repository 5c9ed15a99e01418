"""Collect the measurements with their intervals: before and after training, and of every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning_pspo.report.arms import Arm
from lightning_pspo.report.curves import finite
from lightning_pspo.report.runs import TrainingRun, pair

_SHARES = {"accuracy_strict": "strict", "no_answer": "no answer", "truncated": "cut off"}
_MAX_ROWS = 500  # of a run
_MAX_VOTES = 6
_Bounded = tuple[float, float | None, float | None]
"""Value, lower and upper bound."""


@dataclass(frozen=True)
class EvaluationRow:
    """One row of the table."""

    arm: Arm
    run: str
    name: str  # what was evaluated
    source: str
    temperature: float | None
    problems: str  # number of problems, and of samples of each
    estimates: Mapping[str, _Bounded]

    @property
    def title(self) -> str:
        """Source and temperature, which group the rows."""
        return self.source if self.temperature is None else f"{self.source}, temperature {self.temperature:g}"


def evaluations(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the table of all measurements, in groups of a source and temperature, and its columns."""
    rows = [row for arm in arms for run in arm.runs for row in islice(_of_run(arm, run), _MAX_ROWS)]
    groups: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault(row.title, []).append(row)
    votes = sorted({name for row in rows for name in row.estimates if "@" in name and not name.endswith("@1")}, key=_k)
    most = str(max((_k(name)[1] for name in votes), default=0))
    votes = [name for name in votes if name.partition("@")[2] == most][:_MAX_VOTES]
    shares = [name for name in _SHARES if any(name in row.estimates for row in rows)]
    headings = ["run", "evaluated", "problems", "accuracy", "95 % interval", *(_SHARES[name] for name in shares)]
    return {"groups": groups, "columns": [*shares, *votes], "headings": [*headings, *votes, "tokens"]}


def _of_run(arm: Arm, run: TrainingRun) -> Iterator[EvaluationRow]:
    summary = run.summary
    for when in ("before", "after"):
        accuracy = finite(summary.get(f"accuracy_{when}"))
        if accuracy is None:
            continue
        estimates: dict[str, _Bounded] = {"accuracy": (accuracy, *pair(summary.get(f"interval_{when}")))}
        if (length := finite(summary.get(f"length_tokens_{when}"))) is not None:
            estimates["length_tokens"] = (length, None, None)
        size = _problems(summary.get("problems"), summary.get("n"))
        yield _row(arm, run, f"{when} training", summary, size, estimates)
    for evaluation in run.evaluations:
        for result in evaluation.document["results"]:
            if isinstance(result, dict) and isinstance(result.get("estimates"), dict):
                problems, each = result.get("problems"), result.get("samples_per_problem", 1)
                total = problems * each if isinstance(problems, int) and isinstance(each, int) else None
                estimates = dict(_estimates(result["estimates"]))
                yield _row(arm, run, evaluation.name, result, _problems(problems, total), estimates)


def _row(arm: Arm, run: TrainingRun, name: str, document: Mapping[str, Any], *rest: Any) -> EvaluationRow:
    source, temperature = str(document.get("source", "–")), finite(document.get("temperature"))
    return EvaluationRow(arm, run.label, name, source, temperature, *rest)


def _estimates(document: Mapping[str, Any]) -> Iterator[tuple[str, _Bounded]]:
    for name, entry in document.items():
        if isinstance(entry, dict) and (value := finite(entry.get("value"))) is not None:
            yield str(name), (value, finite(entry.get("low")), finite(entry.get("high")))


def _problems(problems: Any, samples: Any) -> str:
    if not isinstance(problems, int) or finite(problems) is None:
        return "–"
    each = samples // max(1, problems) if isinstance(samples, int) and finite(samples) is not None else 1
    return str(problems) if each == 1 else f"{problems} × {each}"


def _k(name: str) -> tuple[str, int]:
    kind, _, k = name.partition("@")
    return {"pass": "0", "maj": "1", "best": "2"}.get(kind, kind), int(k) if k.isdecimal() and len(k) < 10 else 0
