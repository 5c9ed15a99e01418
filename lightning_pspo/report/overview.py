"""The first section of the page: what each arm has reached, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_pspo.report.arms import Arm, run_labels, seed
from lightning_pspo.report.charts import number, percent
from lightning_pspo.report.curves import finite
from lightning_pspo.report.runs import TrainingRun, pair
from lightning_pspo.report.series import steps_per_rollout

HEADINGS = ("arm", "seeds", "rollouts", "before", "after", "0 to 100 %", "tokens", "time")


@dataclass(frozen=True)
class OverviewRow:
    """What an arm has reached, as text.

    Attributes:
        arm: The arm.
        seeds: How many, and which.
        rollouts: How many are finished.
        is_short: Whether a run has fewer rollouts than planned.
        before: Accuracy before training.
        after: Accuracy after training.
        interval: Value, lower and upper bound after training, and the value before; None where they are unknown.
        tokens: Mean completion length before and after.
        time: How long training took.
    """

    arm: Arm
    seeds: str
    rollouts: str
    is_short: bool
    before: str
    after: str
    interval: tuple[float, float | None, float | None, float | None] | None
    tokens: str
    time: str


def overview(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return headline numbers, the table of the arms, and what is missing."""
    runs = [run for arm in arms for run in arm.runs]
    band = "the lowest to the highest of several seeds" if any(len(arm.runs) > 1 for arm in arms) else ""
    caption = (
        "Accuracy before and after training, mean completion length before and after, time of training. "
        f"The line is the 95 % interval by problem, of a single run{f', or {band}' if band else ''}; "
        "the hollow circle is the accuracy before training."
    )
    tiles = _tiles(arms[0]) if len(arms) == 1 else []
    return {"tiles": tiles, "headings": HEADINGS, "rows": [_row(arm) for arm in arms], "caption": caption} | {
        "notes": _notes(runs)
    }


def finished(run: TrainingRun) -> float | None:
    """Return how many rollouts a run has finished, None if that is not known."""
    count = finite(run.summary.get("rollouts"))
    if count is not None:
        return count
    scale = steps_per_rollout([run])
    ends = [steps[-1] for key, (steps, _) in run.curves.items() if not key.startswith("val/")]
    return max(ends) / scale[id(run)] if scale and ends else None


def _tiles(arm: Arm) -> list[tuple[str, str, str]]:
    """Return the headline numbers of a single arm: name, value, what stands below."""
    before, after = _mean(arm, "accuracy_before"), _mean(arm, "accuracy_after")
    short, long = _mean(arm, "length_tokens_before"), _mean(arm, "length_tokens_after")
    summary = next((run.summary for run in arm.runs if run.summary), {})
    tiles: list[tuple[str, str, str]] = []
    if before is not None and after is not None:
        gain = f"{100 * (after - before):+.1f} points".replace("-", "−")
        temperature = finite(summary.get("temperature"))
        at = "" if temperature is None else f", temperature {temperature:g}"
        tiles.append((f"Accuracy on {summary.get('source', '')}{at}", f"{percent(before)} → {percent(after)}", gain))
    if short is not None and long is not None:
        tiles.append(("Completion length", f"{number(short)} → {number(long)}", "tokens"))
    if rollouts := _finished(arm):
        planned = _planned(arm)
        tiles.append(("Rollouts", _span(rollouts), "" if planned is None else f"of {planned:,.0f} planned"))
    if (time := _mean(arm, "seconds")) is not None:
        tiles.append(("Training took", duration(time), "mean of the seeds" if len(arm.runs) > 1 else ""))
    return tiles


def _row(arm: Arm) -> OverviewRow:
    before, after = _mean(arm, "accuracy_before"), _mean(arm, "accuracy_after")
    rollouts, planned = _finished(arm), _planned(arm)
    is_short = bool(rollouts) and planned is not None and min(rollouts) < planned
    lengths = [_mean(arm, "length_tokens_before"), _mean(arm, "length_tokens_after")]
    time = _mean(arm, "seconds")
    interval = None
    if after is not None:
        values = _values(arm, "accuracy_after")
        summary = next(run.summary for run in arm.runs if finite(run.summary.get("accuracy_after")) is not None)
        bounds = (min(values), max(values)) if len(values) > 1 else pair(summary.get("interval_after"))
        interval = (after, *bounds, before)
    return OverviewRow(
        arm=arm,
        seeds=f"{len(arm.runs)} ({', '.join(seed(run) for run in arm.runs)})",
        rollouts=_span(rollouts) + (f" of {planned:,.0f}" if is_short else "") if rollouts else "–",
        is_short=is_short,
        before="–" if before is None else percent(before),
        after="–" if after is None else percent(after),
        interval=interval,
        tokens=" → ".join(number(length) for length in lengths if length is not None) or "–",
        time="–" if time is None else duration(time),
    )


def _finished(arm: Arm) -> list[float]:
    return [count for run in arm.runs if (count := finished(run)) is not None]


def _planned(arm: Arm) -> float | None:
    return finite(arm.runs[0].setting("data.num_rollouts"))


def _values(arm: Arm, name: str) -> list[float]:
    return [value for run in arm.runs if (value := finite(run.summary.get(name))) is not None]


def _mean(arm: Arm, name: str) -> float | None:
    values = _values(arm, name)
    return sum(values) / len(values) if values else None


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} – {high}"


def duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds.

    >>> duration(37.3), duration(754), duration(7384)
    ('37 s', '12 min 34 s', '2 h 3 min')
    """
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600:,} h {total % 3600 // 60} min"


def _notes(runs: Sequence[TrainingRun]) -> list[tuple[str, str]]:
    """Return what is missing or odd, as names of runs and a note; a note that several runs share comes once."""
    labels = run_labels(runs)
    owners: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            owners.setdefault(note, []).append(labels[id(run)])
    return [(", ".join(names), note) for note, names in owners.items()]
