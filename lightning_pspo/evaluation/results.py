"""Show results of an evaluation as tables for a terminal and as a document for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table
from rich.text import Text

from lightning_pspo.errors import visible
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
        estimates: Every metric with its 95 % interval clustered by prompt; docs/evaluation.md explains the names.
    """

    accuracy: float
    problems: int
    samples: int
    correct: int
    length_tokens: float
    truncated: float
    estimates: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def per_problem(self) -> int:
        """Samples per problem."""
        return self.samples // max(1, self.problems)


Evaluation = Mapping[str, Mapping[float, EvaluationResult]]
"""Source -> temperature -> result."""

_TEXT_COLUMNS = {
    "finished": "finished",
    "no_answer": "no\nanswer",
    "undecided": "un-\ndecided",
    "prompt_repeated": "repeats\nprompt",
    "text_after_answer": "goes on\nafter",
    "repetition": "repeats\nitself",
}


def result_tables(evaluation: Evaluation) -> list[Table]:
    """Return a table of the answers and a table of the completions; see docs/evaluation.md."""
    votes = _largest_votes(evaluation)
    answers = Table("source", "T", "n", "accuracy", "95 % interval", "strict", *votes, title="Results")
    answers.caption, answers.caption_justify = "95 % intervals, clustered by problem", "left"
    texts = Table("source", "T", "tokens", *_TEXT_COLUMNS.values(), title="Completions", padding=(0, 1, 0, 0))
    for source, temperature, result in _entries(evaluation):
        estimates, each = result.estimates, result.per_problem
        name = Text(visible(source))
        answers.add_row(
            name,
            f"{temperature:g}",
            str(result.problems) if each == 1 else f"{result.problems} x {each}",
            f"{result.accuracy:.1%}",
            f"{estimates['accuracy'].low:.1%} - {estimates['accuracy'].high:.1%}",
            f"{estimates['accuracy_strict'].value:.1%}",
            *(f"{estimates[name].value:.1%}" if name in estimates else "" for name in votes),
        )
        shares = (f"{estimates[name].value:.1%}" for name in _TEXT_COLUMNS)
        texts.add_row(name, f"{temperature:g}", f"{result.length_tokens:.1f}", *shares)
    return [answers, texts]


def _entries(evaluation: Evaluation) -> Iterator[tuple[str, float, EvaluationResult]]:
    for source, by_temperature in evaluation.items():
        for temperature, result in by_temperature.items():
            yield source, temperature, result


def _largest_votes(evaluation: Evaluation) -> list[str]:
    """Return the measured ones of pass@k, maj@k and best@k, for the largest k."""
    names = {name for _, _, result in _entries(evaluation) for name in result.estimates if "@" in name}
    k = max((int(name.partition("@")[2]) for name in names), default=1)
    return [name for name in (f"{vote}@{k}" for vote in ("pass", "maj", "best")) if name in names]


def result_document(evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, versions and all estimates as plain values, an infinite bound as None."""
    return {
        "interval": "95 %, clustered by problem",
        "settings": dict(settings),
        "versions": {name: _version(name) for name in ("lightning-pspo", "torch", "transformers", "math-verify")},
        "results": [
            {
                "source": source,
                "temperature": temperature,
                "problems": result.problems,
                "samples_per_problem": result.per_problem,
                "correct": result.correct,
                "estimates": {
                    name: {key: value if math.isfinite(value) else None for key, value in asdict(estimate).items()}
                    for name, estimate in result.estimates.items()
                },
            }
            for source, temperature, result in _entries(evaluation)
        ],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return None
