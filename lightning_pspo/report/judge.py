"""Summarise a judge's scores: means, histograms, and completions without a score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning_pspo.report.arms import Arm, setting_rows

DIMENSIONS = ("overall_quality", "constraint_adherence", "logical_coherence", "mathematical_soundness", "clarity")
_SCORES = range(1, 6)
_MAX_SOURCES = 50  # of an arm


@dataclass(frozen=True)
class JudgeRow:
    """What an arm got on a source."""

    arm: Arm
    source: str  # may be empty
    scored: int  # completions
    missing: int  # completions
    reasons: str  # the most frequent ones for no score
    histograms: Sequence[tuple[str, Sequence[int]] | None]  # by dimension: mean with interval, how often 1 to 5


def judge(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the scores of each arm and what is known about the judge; empty if no run was judged."""
    rows = [row for arm in arms for row in islice(_rows(arm), _MAX_SOURCES)]
    summaries = [(arm, run.judge_summary) for arm in arms for run in arm.runs if run.judge_summary]
    headings = ("arm", "scored", "not scored", *(name.replace("_", " ") for name in DIMENSIONS))
    first = {arm.number: (arm, summary) for arm, summary in reversed(summaries)}
    return {"rows": rows, "headings": headings} | {
        "summaries": [(arm, _distrust(summary), setting_rows(summary)) for _, (arm, summary) in sorted(first.items())]
    }


def scores(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the scores of a row that are integers from 1 to 5."""
    values = row.get("scores")
    if not isinstance(values, dict):
        return {}
    return {name: value for name in DIMENSIONS if type(value := values.get(name)) is int and value in _SCORES}


def _rows(arm: Arm) -> Iterator[JudgeRow]:
    """Yield the scores of each source: a mean over training and validation would be about neither."""
    judged: list[Mapping[str, Any]] = []
    for run in arm.runs:
        last = max((row["rollout"] for row in run.judge if isinstance(row.get("rollout"), int)), default=None)
        judged += [row for row in run.judge if last is None or row.get("rollout") == last]
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for row in judged:
        sources.setdefault(str(row.get("source") or ""), []).append(row)
    for source, rows in sources.items():
        scored = [values for row in rows if (values := scores(row))]
        reasons = Counter(str(row.get("reason") or "no reason given")[:60] for row in rows if not scores(row))
        yield JudgeRow(
            arm=arm,
            source=source,
            scored=len(scored),
            missing=len(rows) - len(scored),
            reasons="; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3)),
            histograms=[_histogram([values[name] for values in scored if name in values]) for name in DIMENSIONS],
        )


def _histogram(values: Sequence[int]) -> tuple[str, Sequence[int]] | None:
    if not values:
        return None
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
    within = f" ± {1.96 * spread / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{within}", [values.count(score) for score in _SCORES]


def _distrust(summary: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return level and reasons of a judge that is not to be trusted, or was never measured; else None."""
    trust = summary.get("trust")
    if not isinstance(trust, Mapping) or trust.get("level") in (None, "ok"):
        return None
    why = trust.get("why")
    return str(trust["level"]), "; ".join(map(str, why)) if isinstance(why, list) else ""
