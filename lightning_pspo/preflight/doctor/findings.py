"""What the doctor has found: how bad it is, what was measured, what to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


RANKS = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2, Severity.OK: 3}
EXIT_CODES = {Severity.ERROR: 4, Severity.WARNING: 3, Severity.NOTE: 0, Severity.OK: 0}
"""2 is for a command that cannot be read, as everywhere else."""

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan", Severity.OK: "green"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    Attributes:
        check: Name of the check, stable: programs look for it.
        severity: ``error``: the run is refused, dies or learns nothing. ``warning``: it probably is not the run that is
            wanted. ``note``: worth knowing. ``ok``: measured, and as it should be.
        measured: What was found, with its numbers.
        change: The setting to change and to what; empty where there is nothing to do.
    """

    check: str
    severity: Severity
    measured: str
    change: str = ""


def error(check: str, measured: str, change: str = "") -> Finding:
    """Return a finding that forbids the run."""
    return Finding(check, Severity.ERROR, measured, change)


def warning(check: str, measured: str, change: str = "") -> Finding:
    """Return a finding that makes the run doubtful."""
    return Finding(check, Severity.WARNING, measured, change)


def note(check: str, measured: str, change: str = "") -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(check, Severity.NOTE, measured, change)


def fine(check: str, measured: str) -> Finding:
    """Return the finding of a check that was passed."""
    return Finding(check, Severity.OK, measured)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return each finding once, the worst first, those of equal severity as they came.

    >>> [one.check for one in ordered([fine("a", ""), error("b", ""), note("c", ""), error("b", "")])]
    ['b', 'c', 'a']
    """
    return sorted(dict.fromkeys(findings), key=lambda finding: RANKS[finding.severity])


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code by the worst finding: 4 for an error, 3 for a warning, else 0.

    >>> exit_code([fine("a", ""), note("b", "")]), exit_code([warning("a", "")]), exit_code([error("a", "")])
    (0, 3, 4)
    """
    return max((EXIT_CODES[finding.severity] for finding in findings), default=0)


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each severity.

    >>> counts([fine("a", ""), error("b", "")])
    {'error': 1, 'warning': 0, 'note': 0, 'ok': 1}
    """
    found = list(findings)
    return {severity.value: sum(one.severity is severity for one in found) for severity in Severity}


def as_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain values."""
    return [asdict(finding) | {"severity": finding.severity.value} for finding in findings]


def from_rows(rows: Iterable[dict[str, Any]]) -> list[Finding]:
    """Return the findings that ``as_rows`` made plain.

    >>> from_rows(as_rows([error("seed", "none")])) == [error("seed", "none")]
    True
    """
    return [Finding(**(row | {"severity": Severity(row["severity"])})) for row in rows]


def table(findings: Iterable[Finding]) -> Table:
    """Return the findings as a table; texts of models and files are text in it, never markup."""
    made = Table(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False)
    for title, ratio in (("", 0), ("check", 0), ("found", 3), ("change", 2)):
        made.add_column(title, overflow="fold", ratio=ratio or None)
    for one in findings:
        label = Text(one.severity.value, _COLOURS[one.severity])
        made.add_row(label, Text(one.check), Text(one.measured), Text(one.change))
    return made
