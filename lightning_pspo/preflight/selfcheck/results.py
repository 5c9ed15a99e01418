"""What a check found, and how far values may be off."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        check: What was checked.
        measured: The number that counts, with its unit or meaning.
        limit: What it may be.
        passed: None for a check that was not made; ``measured`` says why.
        advice: What to do if it fails.
        detail: How it was measured, where that is not always the same.
    """

    check: str
    measured: str
    limit: str
    passed: bool | None
    advice: str
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """How far values may be off that differ only by the order of floating-point additions.

    Attributes:
        gradient: Relative difference of two gradients.
        logprob: Largest difference of two log-probs of a token, in nats.
        mean_logprob: The mean of their absolute differences.
        gap: Difference of two logits at which greedy choices may differ.
        mass: Distance, in probability, of the noise from another token at which sampled ones may differ.
        tokens: Share of the tokens that must be the same on any number of ranks, at least; one tie costs a row's rest.
    """

    gradient: float
    logprob: float
    mean_logprob: float
    gap: float
    mass: float
    tokens: float


FLOAT32 = Limits(gradient=1e-4, logprob=1e-3, mean_logprob=1e-4, gap=1e-3, mass=1e-4, tokens=0.75)
BFLOAT16 = Limits(gradient=0.1, logprob=1.0, mean_logprob=0.05, gap=0.5, mass=0.1, tokens=0.25)
"""Eight bits: a logit of 30 is known to 0.1, and every further layer rounds again."""


def limits_of(precision: str, dtype: str) -> Limits:
    """Return the limits of a run.

    Args:
        precision: Of the trainer.
        dtype: Of the policy.

    >>> limits_of("32-true", "float32").gradient
    0.0001
    >>> limits_of("32-true", "bfloat16").gradient
    0.1
    """
    return BFLOAT16 if "bf16" in precision or dtype == "bfloat16" else FLOAT32


def at_most(check: str, value: float, limit: float, advice: str, detail: str = "") -> Result:
    """Return the result of a number that must not exceed ``limit``; nan fails.

    >>> at_most("distance", 0.5, 0.1, "go nearer").passed
    False
    """
    return Result(check, f"{value:.2g}", f"<= {limit:g}", bool(value <= limit), advice, detail)


def left_out(check: str, why: str) -> Result:
    """Return the result of a check that was not made."""
    return Result(check, why, "", None, "")


def attempt(check: str, advice: str, function: Callable[[], Sequence[Result]]) -> list[Result]:
    """Return what ``function`` finds; an exception is a failure of the check, and the traceback its detail."""
    try:
        return list(function())
    except Exception as error:  # a user's own class may raise anything; the table tells it
        said = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        return [Result(check, said, "no exception", False, advice, "".join(traceback.format_exception(error)))]


def result_table(results: Sequence[Result]) -> Table:
    """Return the table for a terminal."""
    table = Table(box=SIMPLE)
    for heading in ("", "check", "measured", "limit"):
        table.add_column(heading, no_wrap=not heading)
    words = {True: "pass", False: "[bold red]FAIL[/]", None: "-"}
    for one in results:
        how = "" if not one.detail or "\n" in one.detail else f"; {one.detail}"
        table.add_row(words[one.passed], *(escape(text) for text in (one.check, one.measured + how, one.limit)))
    return table


def explained(results: Sequence[Result]) -> list[str]:
    """Return a line for each failure: what to do about it.

    >>> explained([at_most("distance", 0.5, 0.1, "go nearer", "to the wall")])
    ['FAIL distance (to the wall): go nearer']
    """
    found = []
    for one in results:
        if one.passed is False:
            told = f" ({one.detail})" if one.detail and "\n" not in one.detail else ""
            found.append(f"FAIL {one.check}{told}: {one.advice}")
            if "\n" in one.detail:
                found.append(one.detail.rstrip())
    return found
