"""Show completions: of the same problems before and after training, and during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_pspo.report.arms import Arm, seed
from lightning_pspo.report.charts import number
from lightning_pspo.report.curves import finite
from lightning_pspo.report.escaping import cut
from lightning_pspo.report.runs import TrainingRun

MAX_CHARACTERS = 6_000
"""Most characters of a completion; the page says how many it leaves out."""
_MAX_PROBLEMS = 12
_MAX_COLUMNS = 24  # completions of a problem
_LONG = 1_500  # characters that a box shows without scrolling
_VERDICTS = {
    "correct": ("good", "✓ correct"),
    "wrong": ("bad", "✗ wrong"),
    "no_answer": ("odd", "no answer"),
    "timeout": ("odd", "grading timed out"),
    "error": ("odd", "grading failed"),
}
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class SampleView:
    """A completion on the page."""

    heading: str
    row: _Row  # as RunSummary or CompletionTable wrote it
    arm: int | None = None  # number of its arm; None for no swatch
    measures: str = ""  # reward and length

    def text(self, name: str) -> str | None:
        """Return the question, the completion or the reference answer, cut to a length that a page can hold."""
        value = self.row.get(name)
        return None if value is None else cut(str(value), MAX_CHARACTERS)

    @property
    def is_long(self) -> bool:
        """Whether the completion's box scrolls."""
        completion = self.text("completion") or ""
        return len(completion) > _LONG or completion.count("\n") > _LONG / 60

    @property
    def verdict(self) -> tuple[str, str] | None:
        """Class and text of its label, which does not rest on colour alone."""
        value = self.row.get("verdict")
        return None if value is None else _VERDICTS.get(str(value), ("odd", str(value)))


def samples(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the problems that were measured before and after, and completions of the training."""
    return {
        "problems": _problems(arms)[:_MAX_PROBLEMS],
        "several_seeds": any(len(arm.runs) > 1 for arm in arms),
        "training": [
            (arm, run.path.resolve().name, [_training_sample(row) for row in run.training])
            for arm in arms
            for run in arm.runs[:1]
            if run.training
        ],
    }


def _problems(arms: Sequence[Arm]) -> list[tuple[SampleView, list[SampleView]]]:
    """Return each problem with its completions; a "before" that several arms share comes once."""
    problems: dict[str, SampleView] = {}
    before: dict[str, dict[str, list[tuple[Arm, _Row]]]] = {}
    after: dict[str, list[SampleView]] = {}
    for arm in arms:
        run = next((run for run in arm.runs if _rows(run, "samples_after")), None)
        if run is None:
            continue
        for row in _rows(run, "samples_before"):
            problems.setdefault(_key(row), SampleView(str(row.get("id", "–")), row))
            before.setdefault(_key(row), {}).setdefault(str(row.get("completion")), []).append((arm, row))
        for row in _rows(run, "samples_after"):
            problems.setdefault(_key(row), SampleView(str(row.get("id", "–")), row))
            name = f" · {arm.name}" if len(arms) > 1 else ""
            which = f" (seed {seed(run)})" if len(arm.runs) > 1 else ""
            after.setdefault(_key(row), []).append(SampleView(f"After{name}{which}", row, arm.number))
    views = []
    for key, problem in problems.items():
        shared = before.get(key, {}).values()
        names = [f" · {', '.join(arm.name for arm, _ in same)}" if len(shared) > 1 else "" for same in shared]
        columns = [SampleView(f"Before{name}", same[0][1]) for name, same in zip(names, shared, strict=True)]
        views.append((problem, (columns + after.get(key, []))[:_MAX_COLUMNS]))
    return views


def _rows(run: TrainingRun, name: str) -> list[_Row]:
    rows = run.summary.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _key(row: _Row) -> str:
    return f"{row.get('id')}\n{row.get('question')}"


def _training_sample(row: _Row) -> SampleView:
    reward, length = finite(row.get("reward")), row.get("length_tokens")
    measures = [] if reward is None else [f"reward {number(reward)}"]
    measures += [f"{length} tokens"] if isinstance(length, int) else []
    return SampleView(f"Rollout {row.get('rollout', '–')} ", row, measures=", ".join(measures))
