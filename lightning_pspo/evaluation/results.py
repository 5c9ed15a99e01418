"""The results of an evaluation as tables for a terminal and as a document for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from lightning_pspo.statistics import Estimate


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One source at one temperature, over all ranks, each problem counted once.

    Attributes:
        accuracy: Mean share of correct samples.
        problems: Number of problems.
        samples: Number of samples (problems times samples per problem).
        correct: Number of correct samples.
        length_tokens: Mean completion length in tokens.
        truncated: Share of truncated completions.
        estimates: All that was measured, each with its 95 % interval clustered by prompt; the names are explained in
            docs/evaluation.md.
    """

    accuracy: float
    problems: int
    samples: int
    correct: int
    length_tokens: float
    truncated: float
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


Evaluation = Mapping[str, Mapping[float, EvaluationResult]]
"""Source -> temperature -> result."""

_CAPTION = "95 % intervals, clustered by problem"


def result_tables(evaluation: Evaluation) -> list[Table]:
    """Return the table of what was answered and the table of how it was said; see docs/evaluation.md."""
    k = max((_largest_k(result) for _, _, result in _entries(evaluation)), default=1)
    answers = Table("source", "T", "n", "accuracy", "95 % interval", "strict", title="Results")
    answers.caption, answers.caption_justify = _CAPTION, "left"
    texts = Table("source", "T", "tokens", title="Completions", padding=(0, 1, 0, 0))
    for heading in ("finished", "no\nanswer", "un-\ndecided", "repeats\nprompt", "goes on\nafter", "repeats\nitself"):
        texts.add_column(heading)
    for heading in _voting_headings(evaluation, k):
        answers.add_column(heading)
    for source, temperature, result in _entries(evaluation):
        each = result.samples // max(1, result.problems)
        found = result.estimates
        votes = [f"{found[name].value:.1%}" if name in found else "" for name in _voting_headings(evaluation, k)]
        answers.add_row(
            source,
            f"{temperature:g}",
            str(result.problems) if each == 1 else f"{result.problems} x {each}",
            f"{result.accuracy:.1%}",
            f"{found['accuracy'].low:.1%} - {found['accuracy'].high:.1%}",
            f"{found['accuracy_strict'].value:.1%}",
            *votes,
        )
        names = ("finished", "no_answer", "undecided", "prompt_repeated", "text_after_answer", "repetition")
        shares = [f"{found[name].value:.1%}" for name in names]
        texts.add_row(source, f"{temperature:g}", f"{result.length_tokens:.1f}", *shares)
    return [answers, texts]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return None


def _entries(evaluation: Evaluation) -> Iterator[tuple[str, float, EvaluationResult]]:
    for source, by_temperature in evaluation.items():
        for temperature, result in by_temperature.items():
            yield source, temperature, result


def _largest_k(result: EvaluationResult) -> int:
    return max((int(name.partition("@")[2]) for name in result.estimates if "@" in name), default=1)


def _voting_headings(evaluation: Evaluation, k: int) -> list[str]:
    names = [f"{name}@{k}" for name in ("pass", "maj", "best")]
    return [name for name in names if any(name in result.estimates for _, _, result in _entries(evaluation))]


def result_document(evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all estimates as plain numbers.

    Args:
        evaluation: The results.
        settings: What they were measured with, plain values.

    Returns:
        ``settings``, and ``results`` with one entry for each source and temperature. A bound that is infinite is None.
    """
    return {
        "interval": "95 %, clustered by problem",
        "settings": dict(settings),
        "versions": {name: _version(name) for name in ("lightning-pspo", "torch", "transformers", "math-verify")},
        "results": [
            {
                "source": source,
                "temperature": temperature,
                "problems": result.problems,
                "samples_per_problem": result.samples // max(1, result.problems),
                "correct": result.correct,
                "estimates": {
                    name: {key: value if math.isfinite(value) else None for key, value in asdict(estimate).items()}
                    for name, estimate in result.estimates.items()
                },
            }
            for source, temperature, result in _entries(evaluation)
        ],
    }
