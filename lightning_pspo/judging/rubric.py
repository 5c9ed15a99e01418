"""The rubric: the dimensions that a judge scores, and what each score means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUBRIC_VERSION = "1"
"""Part of the cache's key; raise it with every change of a text here or in ``prompts``."""

SCORES = range(1, 6)

ANCHORS: Mapping[str, tuple[str, tuple[str, str, str, str, str]]] = {
    "overall_quality": (
        "How good the response is as a whole, as an answer to this question.",
        (
            "useless: no answer, off the subject, or wrong from beginning to end",
            "poor: a start that leads nowhere, or a wrong answer from badly flawed work",
            "middling: useful parts, but a wrong answer, or a right one that the work does not support",
            "good: the right answer with sound work and small blemishes",
            "excellent: the right answer, fully and cleanly derived; nothing to mend",
        ),
    ),
    "constraint_adherence": (
        "Whether it does what the question asks for: its form, its units, its conditions, and nothing else.",
        (
            "ignores what was asked",
            "meets few of the conditions, or has no recognisable final answer",
            "meets the main conditions and misses at least one that matters",
            "meets all that matter and misses a detail of form",
            "meets every condition of the question, and the final answer is stated as asked",
        ),
    ),
    "logical_coherence": (
        "Whether each step follows from those before it.",
        (
            "no reasoning, or steps that contradict one another",
            "most steps do not follow",
            "a line of thought that can be followed, with a gap or a jump that matters",
            "every important step follows; small gaps that a reader fills in at once",
            "every step follows, and nothing is superfluous or repeated",
        ),
    ),
    "mathematical_soundness": (
        "Whether the mathematics is right: the set-up, the operations, the arithmetic, the final answer.",
        (
            "wrong throughout, or no mathematics",
            "a wrong set-up, or several serious errors",
            "a right set-up with an error that changes the final answer",
            "the right final answer, with an inaccuracy on the way that does not change it",
            "all correct, the final answer equal to the reference answer",
        ),
    ),
    "clarity": (
        "How easily a reader follows it: order, notation, language. Length alone is no merit.",
        (
            "cannot be understood",
            "can be guessed at with effort",
            "can be followed with some effort; untidy, wordy or repetitive",
            "easy to follow, with small lapses",
            "clear, concise and well ordered",
        ),
    ),
}
"""Dimension -> its description, and an anchor for each score from 1 to 5."""

DIMENSIONS = tuple(ANCHORS)

SCORE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": list(SCORES)} for name in DIMENSIONS},
    "required": list(DIMENSIONS),
    "additionalProperties": False,
}
"""JSON schema of a reply with scores."""

CHOICES = ("first", "second", "tie")

PREFERENCE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"preference": {"type": "string", "enum": list(CHOICES)}},
    "required": ["preference"],
    "additionalProperties": False,
}
"""JSON schema of a reply about a pair."""


def rubric_text() -> str:
    """Return the rubric as the judge reads it."""
    lines = []
    for name, (description, anchors) in ANCHORS.items():
        lines.append(f"{name}: {description}")
        lines += [f"  {score} = {anchor}" for score, anchor in zip(SCORES, anchors, strict=True)]
    return "\n".join(lines)
