"""The base classes of all sources, and of those with one problem per row."""

# No postponed annotations: the command line reads those of subclasses with the names of the subclass's module.

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np

from lightning_pspo.data.columns import Columns
from lightning_pspo.data.rows import Row
from lightning_pspo.data.selection import matching
from lightning_pspo.data.sources.references import check_references
from lightning_pspo.errors import InputError, check_at_least, got_missing
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)

NumberedRow = tuple[str, str, Row]
"""Where a row stands, for messages; its id, unless a column has one; and its fields."""


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
        filter: Take only the rows for which an SQL expression over the columns holds, such as ``level >= 3 and subject
            = 'Algebra'``. It comes before the other three.
        shuffle_seed: Take the rows in an order that this seed, at least 0, decides; None keeps theirs. Ids stay.

    Raises:
        InputError: A number is out of range.
    """

    _: KW_ONLY
    offset: int = 0
    limit: int | None = None
    filter: str | None = None
    shuffle_seed: int | None = None

    unusable = "refuse"
    """What happens to a row that cannot be used; ``skip`` leaves it out."""

    def __post_init__(self) -> None:
        check_at_least("offset", self.offset, 0)
        check_at_least("limit", self.limit, 1)
        check_at_least("shuffle_seed", self.shuffle_seed, 0)

    @property
    def name(self) -> str:
        """The source's name in messages: its class and where the rows come from."""
        return f"{type(self).__name__} ({self.origin})"

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the rows come from."""

    @abstractmethod
    def _rows(self) -> Iterator[NumberedRow]:
        """Yield each row."""

    @property
    @abstractmethod
    def _columns(self) -> Columns:
        """Where a row has its question and its answer."""

    def _problem(self, row: Row, identity: str, where: str) -> Problem | None:
        """Make the problem of one row; None leaves the row out."""
        answer, solution = self._columns.answer_of(row, where)
        question, system = self._columns.question_of(row, where)
        return Problem(identity, question, answer, solution=solution, system=system)

    def load(self) -> list[Problem]:
        """Return one problem per usable row, duplicated questions included.

        Raises:
            InputError: A row cannot be used, two rows have the same id, or nothing is left.
        """
        problems: dict[str, Problem] = {}
        usable, left_out = 0, list[str]()
        for where, identity, row in self._selected():
            try:
                problem = self._problem(row, identity, where)
            except InputError as refusal:
                if self.unusable == "refuse":
                    raise
                left_out.append(str(refusal).rstrip("."))
                continue
            if problem is None:
                left_out.append("its answer is not one number")
                continue
            usable += 1
            if usable <= self.offset:
                continue
            if problem.id in problems:
                raise InputError(f"{where}: the id must be unique, got {problem.id!r} again.")
            problems[problem.id] = problem
            if len(problems) == self.limit:
                break
        reason = f"{len(left_out)} left out" + (f", the first: {left_out[0]}" if left_out else "")
        if not problems:
            skipped = f", {self.offset} skipped by `offset`" if self.offset else ""
            raise InputError(f"{self.origin}: must have at least one usable row, got none ({reason}{skipped}).")
        if left_out:
            _log.warning("%s: kept %d rows, %s.", self.origin, len(problems), reason)
        self._report_unmarked(list(problems.values()))
        self.unverified = check_references(self.origin, problems.values())
        return list(problems.values())

    def _report_unmarked(self, problems: Sequence[Problem]) -> None:
        """Warn about answers that are taken as they stand although others were cut from a derivation."""
        columns = self._columns
        bare = [problem for problem in problems if problem.solution is None]
        if columns.rule == "auto" and columns.solution is None and 0 < len(bare) < len(problems):
            _log.warning(
                "%s: %d of %d answers are taken as they stand (the first: %r of %r), the others from behind #### or in "
                "\\boxed{}: set `answer_rule`.",
                self.origin,
                len(bare),
                len(problems),
                bare[0].answer[:60],
                bare[0].id,
            )

    def _selected(self) -> Iterator[NumberedRow]:
        """Yield the rows that the filter leaves, in the order of the seed."""
        rows = self._rows()
        if self.filter is not None:
            every = list(rows)
            rows = (every[index] for index in matching(self.filter, [row for *_, row in every], self.origin))
        if self.shuffle_seed is not None:
            every = list(rows)
            rows = (every[index] for index in np.random.default_rng(self.shuffle_seed).permutation(len(every)))
        return rows


def check_file(path: str | Path) -> Path:
    """Return ``path`` with ``~`` expanded; raise InputError if it is not a file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"`path` must be a file that exists, {got_missing(path)}")
    return file
