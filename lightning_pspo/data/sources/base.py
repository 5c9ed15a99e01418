"""The base classes of all sources, and of those with one problem per row."""

# No postponed annotations: the command line reads those of subclasses with the names of the subclass's module.

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from lightning_pspo.data.rows import Row
from lightning_pspo.data.sources.references import check_references
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)


class PromptSource(ABC):
    """Problems to train or evaluate on.

    The constructor checks everything that it can without reading the data, so that a mistake is reported at once.

    Attributes:
        unverified: Once loaded, the problems whose reference answer no completion can match.
    """

    unverified: Sequence[Problem] = ()

    @property
    def name(self) -> str:
        """The source's name in messages."""
        return type(self).__name__

    @abstractmethod
    def load(self) -> list[Problem]:
        """Return the problems, at least one, with distinct ids, the same in every run.

        Raises:
            InputError: The data cannot be read or used; the message says where.
        """


@dataclass(eq=False)
class RowSource(PromptSource, ABC):
    """A source with at most one problem per row.

    Args:
        offset: Usable rows to skip first, at least 0: ``limit=7000`` and ``offset=7000`` split a file in two.
        limit: Take only so many of the usable rows that follow, at least 1; None takes all.

    Raises:
        InputError: ``offset`` is below 0 or ``limit`` below 1.
    """

    _: KW_ONLY
    offset: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        check_at_least("offset", self.offset, 0)
        if self.limit is not None:
            check_at_least("limit", self.limit, 1)

    @property
    def name(self) -> str:
        """The source's name in messages: its class and where the rows come from."""
        return f"{type(self).__name__} ({self.origin})"

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the rows come from."""

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its number, from 1."""

    @abstractmethod
    def _problem(self, row: Row, number: int, where: str) -> Problem | None:
        """Make the problem of one row; None leaves the row out."""

    def load(self) -> list[Problem]:
        """Return one problem per usable row, duplicated questions included.

        Raises:
            InputError: A row cannot be used, two rows have the same id, or nothing is left.
        """
        problems: dict[str, Problem] = {}
        usable = left_out = 0
        for number, row in self._rows():
            where = f"{self.origin}, row {number}"
            problem = self._problem(row, number, where)
            if problem is None:
                left_out += 1
                continue
            usable += 1
            if usable <= self.offset:
                continue
            if problem.id in problems:
                raise InputError(f"{where}: the id must be unique, got {problem.id!r} again.")
            problems[problem.id] = problem
            if len(problems) == self.limit:
                break
        if not problems:
            skipped = f", {self.offset} skipped by `offset`" if self.offset else ""
            raise InputError(
                f"{self.origin}: must have at least one usable row, got none ({left_out} left out{skipped})."
            )
        if left_out:
            _log.warning(
                "%s: left out %d rows whose answer is not one number, kept %d.", self.origin, left_out, len(problems)
            )
        self.unverified = check_references(self.origin, problems.values())
        return list(problems.values())


def check_file(path: str | Path, suffixes: tuple[str, ...] = ()) -> Path:
    """Return ``path`` with ``~`` expanded; raise InputError if it is not a file or has none of ``suffixes``."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"`path` must be a file that exists, got {str(path)!r} (from {Path.cwd()}).")
    if suffixes and file.suffix.lower() not in suffixes:
        raise InputError(f"`path` must end in one of {', '.join(suffixes)}, got {str(path)!r}.")
    return file
