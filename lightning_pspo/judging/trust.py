"""Summarise a judge's scores, and measure how reliable it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from lightning_pspo.judging.base import Judgement
from lightning_pspo.judging.rubric import CHOICES, DIMENSIONS, SCORES
from lightning_pspo.statistics import bradley_terry, wilson_interval

THRESHOLDS: Mapping[str, float] = {
    "self_agreement": 0.7,
    "swap_consistency": 0.7,
    "verifier_agreement": 0.7,
    "usable_replies": 0.95,
}
"""Measure -> least value; below it the results are marked as of low trust (docs/judging.md)."""

_SHOWN = 3  # reasons that are spelled out
_FEWEST = 10  # observations that a measure needs before it marks anything


class Tally:
    """Adds up judgements of a judge with some identity, in constant memory except for pairs."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.items = self.scored = self.replies = self.unusable = self.with_injection = 0
        self.counts = {name: Counter[int]() for name in DIMENSIONS}
        self.reasons: Counter[str] = Counter()
        self.injections: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._same = self._compared = 0
        self._sound: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
        self._preferences: Counter[str] = Counter()
        self._swaps: Counter[bool] = Counter()
        self._wins: list[tuple[float, float]] = []

    def add(self, judgement: Judgement, correct: bool | None = None) -> None:
        """Count one judgement; ``correct`` is the verifier's verdict on the completion, None if it has none."""
        self.items += 1
        self.unusable += judgement.unusable
        if judgement.reason is not None:
            kind = judgement.reason.partition(":")[0][:80]
            self.reasons[kind] += 1
            self._examples.setdefault(kind, judgement.reason)
        self.injections.update(judgement.injections)
        self.with_injection += bool(judgement.injections)
        self.scored += judgement.scores is not None or judgement.preference is not None
        if judgement.scores is not None:
            self.replies += len(judgement.repeats)
            for name in DIMENSIONS:
                self.counts[name][judgement.scores[name]] += 1
                for left, right in combinations(judgement.repeats, 2):
                    self._same += left[name] == right[name]
                    self._compared += 1
            if correct is not None:
                self._sound[correct][judgement.scores["mathematical_soundness"]] += 1
        elif judgement.preference is not None:
            self.replies += 2
            self._preferences[judgement.preference] += 1
            self._swaps[bool(judgement.consistent)] += 1
            first = {"first": 1.0, "second": 0.0}.get(judgement.preference, 0.5)
            self._wins.append((first, 1.0 - first))

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values."""
        measures = {
            "self_agreement": _share(self._same, self._compared),
            "swap_consistency": _share(self._swaps[True], self._swaps.total()),
            "verifier_agreement": self._verifier(),
            "usable_replies": _share(self.replies, self.replies + self.unusable),
        }
        low = [
            f"{name} is {measure['value']:.2f}, below {THRESHOLDS[name]:g}"
            for name, measure in measures.items()
            if measure["value"] is not None and measure["n"] >= _FEWEST and measure["value"] < THRESHOLDS[name]
        ]
        measured = any(measures[name]["n"] >= _FEWEST for name in list(measures)[:3])
        level = "ok" if measured else "not measured"
        summary: dict[str, Any] = {
            "judge": dict(self.identity),
            "items": self.items,
            "scored": self.scored,
            "missing": self.items - self.scored,
            "reasons": dict(self.reasons.most_common()),
            "examples": [f"{count} {self._examples[kind]}" for kind, count in self.reasons.most_common(_SHOWN)],
            "trust": {
                "level": "low" if low else level,
                "why": low,
                "thresholds": dict(THRESHOLDS),
                **measures,
            },
            "injections": {"completions": self.with_injection, **self.injections},
        }
        if self._preferences:
            summary["pairwise"] = self._pairwise()
        if any(self.counts[name] for name in DIMENSIONS):
            summary["scores"] = {name: _distribution(self.counts[name]) for name in DIMENSIONS}
        return summary

    def _verifier(self) -> dict[str, Any]:
        """Return how often a correct completion is scored as sounder than a wrong one, equal scores as halves (AUC)."""
        right, wrong = self._sound[True], self._sound[False]
        pairs = right.total() * wrong.total()
        above = sum(right[a] * wrong[b] * (1.0 if a > b else 0.5 * (a == b)) for a in SCORES for b in SCORES)
        return {"value": above / pairs if pairs else None, "n": min(right.total(), wrong.total())}

    def _pairwise(self) -> dict[str, Any]:
        wins = np.zeros((len(self._wins), 2, 2))
        wins[:, 0, 1], wins[:, 1, 0] = np.asarray(self._wins).T
        strength = bradley_terry(wins)[1]
        return {
            **{choice: self._preferences[choice] for choice in CHOICES},
            "strength_of_second": {"value": strength.value, "low": strength.low, "high": strength.high},
        }


def _share(part: int, total: int) -> dict[str, Any]:
    if not total:
        return {"value": None, "n": 0}
    low, high = wilson_interval(part, total)
    return {"value": part / total, "low": low, "high": high, "n": total}


def _distribution(counts: Counter[int]) -> dict[str, Any]:
    total = counts.total()
    mean = sum(score * count for score, count in counts.items()) / total
    return {"mean": mean, "n": total, "counts": [counts[score] for score in SCORES]}
