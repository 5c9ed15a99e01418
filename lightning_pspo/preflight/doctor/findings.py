"""A finding of the doctor: how severe it is, what was measured, what to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_pspo.errors import visible


class Severity(StrEnum):
    """How severe a finding is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


EXIT_CODES = {Severity.ERROR: 4, Severity.WARNING: 3, Severity.NOTE: 0, Severity.OK: 0}
"""Severity -> exit code; 2 is that of a command line that cannot be read, as in all commands."""

_ORDER = list(Severity)
_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan", Severity.OK: "green"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        severity: ``error``: the run is refused, dies or learns nothing. ``warning``: it is probably not the run you
            want, or too little was measured to say. ``note``: worth knowing. ``ok``: measured, and as it should be.
        check: Stable name of the check, for programs.
        measured: What was measured, with numbers.
        change: The setting to change, and its new value; empty if there is nothing to do.
    """

    severity: Severity
    check: str
    measured: str
    change: str = ""


error = partial(Finding, Severity.ERROR)
warning = partial(Finding, Severity.WARNING)
note = partial(Finding, Severity.NOTE)
fine = partial(Finding, Severity.OK)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return each finding once, the worst first, otherwise in their order.

    >>> [finding.check for finding in ordered([fine("a", ""), error("b", ""), note("c", ""), error("b", "")])]
    ['b', 'c', 'a']
    """
    return sorted(dict.fromkeys(findings), key=lambda finding: _ORDER.index(finding.severity))


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of the worst finding: 4 for an error, 3 for a warning, else 0.

    >>> exit_code([fine("a", ""), note("b", "")]), exit_code([warning("a", "")]), exit_code([error("a", "")])
    (0, 3, 4)
    """
    return max((EXIT_CODES[finding.severity] for finding in findings), default=0)


def as_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain values.

    >>> from_rows(as_rows([error("seed", "none")])) == [error("seed", "none")]
    True
    """
    return [asdict(finding) | {"severity": finding.severity.value} for finding in findings]


def from_rows(rows: Iterable[dict[str, Any]]) -> list[Finding]:
    """Return the findings that ``as_rows`` turned into plain values."""
    return [Finding(**(row | {"severity": Severity(row["severity"])})) for row in rows]


def table(findings: Iterable[Finding]) -> Table:
    """Return the findings as a table; texts of models and files stay text, never markup."""
    result = Table(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False)
    for title, ratio in (("", None), ("check", None), ("measured", 3), ("change", 2)):
        result.add_column(title, overflow="fold", ratio=ratio)
    for finding in findings:
        texts = (Text(visible(text, lines=True)) for text in (finding.check, finding.measured, finding.change))
        result.add_row(Text(finding.severity.value, _COLOURS[finding.severity]), *texts)
    return result
