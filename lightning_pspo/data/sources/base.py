"""What a source is, and what the sources with one problem per row share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_pspo.data.sources.references import check_references
from lightning_pspo.data.sources.rows import Row
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)


class PromptSource(ABC):
    """Problems to train or evaluate on.

    ``__init__`` checks everything that it can without reading the data, so that a mistake stops before any work.

    Attributes:
        unverified: Once loaded, the problems whose reference answer does not verify against itself.
    """

    unverified: Sequence[Problem] = ()

    @property
    def name(self) -> str:
        """What messages call this source."""
        return type(self).__name__

    @abstractmethod
    def load(self) -> list[Problem]:
        """Return the problems, at least one, with distinct ids, the same in every run.

        Raises:
            InputError: The data cannot be read or used; the message says where.
        """


class RowSource(PromptSource):
    """A source with at most one problem per row.

    Args:
        origin: Where the rows come from, for messages.
        limit: Take the first that many usable rows only, at least 1; None takes all.

    Raises:
        InputError: ``limit`` is below 1.
    """

    def __init__(self, origin: str, limit: int | None) -> None:
        check_at_least_one("limit", limit)
        self.origin, self.limit = origin, limit

    @property
    def name(self) -> str:
        """What messages call this source: its class and where the rows come from."""
        return f"{type(self).__name__} ({self.origin})"

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its 1-based number."""

    @abstractmethod
    def _problem(self, row: Row, number: int, where: str) -> Problem | None:
        """Make the problem of one row; None leaves the row out."""

    def load(self) -> list[Problem]:
        """Return one problem per usable row, duplicated questions included.

        Raises:
            InputError: A row cannot be used, two rows have the same id, or nothing is left.
        """
        problems: dict[str, Problem] = {}
        skipped = 0
        for number, row in self._rows():
            where = f"{self.origin}, row {number}"
            problem = self._problem(row, number, where)
            if problem is None:
                skipped += 1
                continue
            if problem.id in problems:
                raise InputError(f"{where}: the id must be unique, got {problem.id!r} again.")
            problems[problem.id] = problem
            if len(problems) == self.limit:
                break
        if not problems:
            raise InputError(f"{self.origin}: must have at least one usable row, got none ({skipped} left out).")
        if skipped:
            _log.warning(
                "%s: left out %d rows whose answer is not one number, kept %d.", self.origin, skipped, len(problems)
            )
        self.unverified = check_references(self.origin, problems.values())
        return list(problems.values())


def check_file(path: str | Path, suffixes: tuple[str, ...] = ()) -> Path:
    """Return ``path`` with ``~`` expanded; raise InputError if it is no file or has none of ``suffixes``."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"`path` must be a file that exists, got {str(path)!r} (from {Path.cwd()}).")
    if suffixes and file.suffix.lower() not in suffixes:
        raise InputError(f"`path` must end in one of {', '.join(suffixes)}, got {str(path)!r}.")
    return file


def check_at_least_one(name: str, value: int | None) -> None:
    """Raise InputError for a number below 1; None passes."""
    if value is not None and value < 1:
        raise InputError(f"`{name}` must be at least 1, got {value}.")
