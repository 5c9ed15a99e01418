"""The first section of the page: what each arm has reached, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lightning_pspo.files import setting_at
from lightning_pspo.report.arms import Arm, seed
from lightning_pspo.report.charts import number, percent
from lightning_pspo.report.curves import finite
from lightning_pspo.report.runs import TrainingRun, pair


class ArmSummary:
    """What an arm has reached: means over its runs, None where they are not known."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.summaries = [run.summary for run in arm.runs if run.summary]
        self.before, self.after = self.mean("accuracy_before"), self.mean("accuracy_after")
        lengths = (self.mean("length_tokens_before"), self.mean("length_tokens_after"))
        self.tokens = " → ".join(number(length) for length in lengths if length is not None)
        self.seconds = self.mean("seconds")
        self.planned = finite(setting_at(arm.runs[0].config, "data.num_rollouts"))
        self.seeds = f"{len(arm.runs)} seed{'s'[: len(arm.runs) - 1]}: {', '.join(seed(run) for run in arm.runs)}"

    def values(self, name: str) -> list[float]:
        """Return a figure of each run that has it."""
        return [value for summary in self.summaries if (value := finite(summary.get(name))) is not None]

    def mean(self, name: str) -> float | None:
        """Return the mean of a figure."""
        values = self.values(name)
        return sum(values) / len(values) if values else None

    @cached_property
    def finished(self) -> list[float]:
        """How many rollouts each run has finished."""
        return [count for run in self.arm.runs if (count := finished(run)) is not None]

    @property
    def is_short(self) -> bool:
        """Whether a run has fewer rollouts than planned."""
        return bool(self.finished) and self.planned is not None and min(self.finished) < self.planned

    @property
    def rollouts(self) -> str:
        """The fewest and the most rollouts of a run."""
        ends = dict.fromkeys(number(end) for end in (min(self.finished), max(self.finished))) if self.finished else "–"
        return " – ".join(ends)

    @property
    def interval(self) -> tuple[float | None, ...]:
        """Accuracy after training, its bounds, and accuracy before."""
        values = self.values("accuracy_after")
        first = next((each for each in self.summaries if finite(each.get("accuracy_after")) is not None), {})
        bounds = (min(values), max(values)) if len(values) > 1 else pair(first.get("interval_after"))
        return (self.after, *bounds, self.before)

    def tiles(self) -> list[tuple[str, str, str]]:
        """Return headline figures: name, value, what stands below."""
        tiles: list[tuple[str, str, str]] = []
        if self.before is not None and self.after is not None:
            gain = f"{100 * (self.after - self.before):+.1f} points".replace("-", "−")
            temperature = finite(self.summaries[0].get("temperature"))
            at = "" if temperature is None else f", temperature {temperature:g}"
            name = f"Accuracy on {self.summaries[0].get('source', '')}{at}"
            tiles.append((name, f"{percent(self.before)} → {percent(self.after)}", gain))
        if "→" in self.tokens:
            tiles.append(("Completion length", self.tokens, "tokens"))
        if self.finished:
            tiles.append(("Rollouts", self.rollouts, "" if self.planned is None else f"of {self.planned:,.0f} planned"))
        if self.seconds is not None:
            below = "mean of the seeds" if len(self.arm.runs) > 1 else ""
            tiles.append(("Training took", duration(self.seconds), below))
        return tiles


def overview(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return what each arm has reached, and what is missing."""
    summaries = [ArmSummary(arm) for arm in arms]
    band = ", or the lowest to the highest of several seeds" if any(len(arm.runs) > 1 for arm in arms) else ""
    caption = (
        "Accuracy before and after training, mean completion length before and after, time of training. "
        f"The line is the 95 % interval by problem, of a single run{band}; "
        "the hollow circle is the accuracy before training."
    )
    tiles = summaries[0].tiles() if len(arms) == 1 else []
    notes = _notes([run for arm in arms for run in arm.runs])
    return {"tiles": tiles, "rows": summaries, "caption": caption, "notes": notes}


def finished(run: TrainingRun) -> float | None:
    """Return how many rollouts a run has finished, None if that is not known."""
    count = finite(run.summary.get("rollouts"))
    if count is not None:
        return count
    ends = [rollouts[-1] for key, (rollouts, _) in run.curves.items() if not key.startswith("val/")]
    return max(ends, default=None)


def duration(seconds: float) -> str:
    """Return a time as text.

    >>> duration(4.26), duration(37.3), duration(754), duration(7384), duration(200000)
    ('4.3 s', '37 s', '12 min 34 s', '2 h 3 min', '2 d 7 h')
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _notes(runs: Sequence[TrainingRun]) -> list[tuple[str, str]]:
    """Return what is missing or odd, as names of runs and a note; a note that several runs share comes once."""
    owners: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            owners.setdefault(note, []).append(run.label)
    return [(", ".join(names), note) for note, names in owners.items()]
