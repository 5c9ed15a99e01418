"""Reading a ledger: file by file, the columns that are asked for, of the rows that are asked for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from lightning_pspo.ledger.columns import FOLDER, find_files, rollout_span
from lightning_pspo.ledger.filters import Column, Comparison, Filter, Join, Not, unknown_column

Span = tuple[int, int]
"""First and last rollout, both included."""

_TABLE_ROWS = 1024  # of several ranks: at least as many come together


@dataclass(frozen=True)
class Part:
    """One file of a ledger.

    Attributes:
        path: The file.
        rank: Whose rows it holds.
        rollouts: Its first and last rollout.
        rows: Number of rows.
    """

    path: Path
    rank: int
    rollouts: Span
    rows: int


def find_ledger(path: Path) -> Path:
    """Return the ledger's folder that a path means: itself, or the one in a run's directory.

    Raises:
        ValueError: There is none.
    """
    for folder in (path / FOLDER, path):
        if find_files(folder):
            return folder
    what = "it does not exist" if not path.exists() else f"there is no rollout=*.parquet in it or in its {FOLDER}/"
    raise ValueError(f"RUN must be the directory of a run with a ledger, got {path}: {what}. RolloutLedger writes one.")


class Ledger:
    """The rows of a run.

    Files that cannot be read are left out and named; the others are read all the same.

    Args:
        folder: As `find_ledger` returns it.

    Attributes:
        folder: The ledger's folder.
        parts: The files that can be read, by first rollout and rank.
        damaged: File -> why it cannot be read. Grows while reading, where a footer promised too much.
        schema: All columns that occur.

    Raises:
        ValueError: No file can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        self.damaged: dict[Path, str] = {}
        self._masks: dict[tuple[Path, Filter | None, Span | None], Any] = {}
        schemas: dict[tuple[str, ...], pa.Schema] = {}
        for _, rank, path in find_files(folder):
            try:
                metadata = parquet.read_metadata(path)
                part = Part(path, rank, rollout_span(metadata), metadata.num_rows)
                names = tuple(metadata.schema.names)
                if names not in schemas:
                    schemas[names] = metadata.schema.to_arrow_schema().remove_metadata()
            except (pa.ArrowException, OSError, ValueError) as error:
                self.damaged[path] = _short(error)
                continue
            self.parts.append(part)
        if not self.parts:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in self.damaged.items())
            raise ValueError(f"{folder} must have a file that can be read, got none: {reasons}.")
        self.schema: pa.Schema = pa.unify_schemas(list(schemas.values()), promote_options="permissive")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(part.rows for part in self.parts)

    @property
    def rollouts(self) -> Span:
        """First and last rollout."""
        return min(part.rollouts[0] for part in self.parts), max(part.rollouts[1] for part in self.parts)

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise ValueError, with the nearest names, for a column that this ledger does not have."""
        for name in names:
            if name not in self.schema.names:
                raise ValueError(unknown_column(name, self.schema.names))

    def scan(
        self, columns: Sequence[str], where: Filter | None = None, rollouts: Span | None = None
    ) -> Iterator[pa.Table]:
        """Read rows, in the order of rollouts, of ranks, and of a rank's rows.

        Args:
            columns: Names, in the order that is wanted.
            where: Rows that are wanted; None for all.
            rollouts: First and last rollout that are wanted; None for all.

        Yields:
            Tables with these columns and at least one row.

        Raises:
            ValueError: There is no such column, or ``where`` compares one with something of another kind.
        """
        self.check_columns(columns)
        if where is not None:
            where.check(self.schema)
        ranks = sorted({part.rank for part in self.parts})
        if len(ranks) == 1:
            yield from self._of_rank(ranks[0], columns, where, rollouts)
            return
        wanted = list(dict.fromkeys([*columns, "rollout"]))
        streams = [_by_rollout(rank, self._of_rank(rank, wanted, where, rollouts)) for rank in ranks]
        pieces: list[pa.Table] = []
        for _, _, rows in heapq.merge(*streams, key=lambda one: one[:2]):
            pieces.append(rows.select(list(columns)))
            if sum(piece.num_rows for piece in pieces) >= _TABLE_ROWS:
                yield pa.concat_tables(pieces)
                pieces = []
        if pieces:
            yield pa.concat_tables(pieces)

    def by_rollout(
        self, columns: Sequence[str], where: Filter | None = None, rollouts: Span | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Read as `scan` does, one rollout at a time: its number and the rows of all ranks."""
        cut = _by_rollout(0, self.scan([*columns, "rollout"], where, rollouts))
        for number, pieces in groupby(cut, key=lambda one: one[0]):
            yield number, pa.concat_tables([rows for _, _, rows in pieces]).select(list(columns))

    def count(self, where: Filter | None = None, rollouts: Span | None = None) -> int:
        """Return the number of rows that `scan` would yield, and keep in mind which: it then reads no others."""
        if where is None and rollouts is None:
            return self.rows
        if where is not None:
            where.check(self.schema)
        return sum(self._count(part, where, rollouts) for part in self.parts)

    def top(
        self,
        columns: Sequence[str],
        by: str,
        limit: int,
        descending: bool = False,
        where: Filter | None = None,
        rollouts: Span | None = None,
    ) -> list[pa.Table]:
        """Return the first rows in the order of a column, equal ones in the order of `scan`, nothing and nan last.

        Only the column is read of all rows, the other columns of those that are returned.

        Args:
            columns: Names, in the order that is wanted.
            by: Column of numbers or texts.
            limit: Number of rows, at least 1.
            descending: Largest first.
            where: Rows that are wanted; None for all.
            rollouts: First and last rollout that are wanted; None for all.

        Raises:
            ValueError: There is no such column, or ``by`` holds lists.
        """
        self.check_columns([by])
        if pa.types.is_list(self.schema.field(by).type):
            raise ValueError(f"rows cannot be sorted by `{by}`, which holds a list in each.")
        order = "descending" if descending else "ascending"

        def rows(condition: Filter, most: int) -> pa.Table:
            both = condition if where is None else Join("and", (where, condition))
            wanted = list(dict.fromkeys([*columns, by]))
            found = [self.schema.empty_table().select(wanted)]
            for table in self.scan(wanted, both, rollouts):
                found.append(table.slice(0, most))
                if (most := most - table.num_rows) <= 0:
                    break
            table = pa.concat_tables(found)
            return table.take(pc.sort_indices(table, [(by, order)])).select(list(columns))

        ordered = Comparison(by, "==", Column(by))  # neither null nor nan
        known = ordered if where is None else Join("and", (where, ordered))
        keys = pa.concat_tables([self.schema.empty_table().select([by]), *self.scan([by], known, rollouts)])
        found: list[pa.Table] = []
        if keys.num_rows:
            places = pc.sort_indices(keys, [(by, order)])
            last = keys[by][places[min(limit, keys.num_rows) - 1].as_py()].as_py()
            found.append(rows(Comparison(by, ">" if descending else "<", last), limit))
            found.append(rows(Comparison(by, "==", last), limit - found[0].num_rows))
        if keys.num_rows < limit:
            found.append(rows(Not(ordered), limit - keys.num_rows))
        return [table for table in found if table.num_rows]

    def _count(self, part: Part, where: Filter | None, rollouts: Span | None) -> int:
        if _apart(part, rollouts):
            return 0
        try:
            with _opened(part) as file:
                mask = self._mask(file, where, rollouts)[0]
        except (pa.ArrowException, OSError) as error:
            self.damaged[part.path] = _short(error)
            return 0
        self._masks[part.path, where, rollouts] = mask
        return int(pc.sum(mask).as_py())

    def _of_rank(
        self, rank: int, columns: Sequence[str], where: Filter | None, rollouts: Span | None
    ) -> Iterator[pa.Table]:
        for part in self.parts:
            if part.rank != rank or part.path in self.damaged or _apart(part, rollouts):
                continue
            try:
                rows = self._read(part, columns, where, rollouts)
            except (pa.ArrowException, OSError) as error:  # its footer was whole, its pages are not
                self.damaged[part.path] = _short(error)
                continue
            if rows.num_rows:
                yield rows

    def _read(self, part: Part, columns: Sequence[str], where: Filter | None, rollouts: Span | None) -> pa.Table:
        """Return a file's rows: first the columns that choose them, then, if any is chosen, the others."""
        nothing = self.schema.empty_table().select(list(columns))
        mask = self._masks.get((part.path, where, rollouts))
        if mask is not None and not pc.any(mask).as_py():
            return nothing
        with _opened(part) as file:
            if where is None and rollouts is None:
                return self._columns(file, columns)
            if mask is not None and len(mask) == file.metadata.num_rows:
                return self._columns(file, columns).filter(mask)
            mask, table = self._mask(file, where, rollouts)
            if not pc.any(mask).as_py():
                return nothing
            missing = [name for name in columns if name not in table.column_names]
            rest = self._columns(file, missing) if missing else table
            both = [(table if name in table.column_names else rest)[name] for name in columns]
            return pa.table(both, schema=nothing.schema).filter(mask)

    def _mask(
        self, file: parquet.ParquetFile, where: Filter | None, rollouts: Span | None
    ) -> tuple[pa.Array, pa.Table]:
        """Return which rows of a file are wanted, and the columns that say so."""
        table = self._columns(file, list(dict.fromkeys(["rollout", *(() if where is None else where.columns)])))
        if rollouts is None:
            assert where is not None
            return where.mask(table), table
        number = table["rollout"].combine_chunks()
        mask = pc.and_(pc.greater_equal(number, rollouts[0]), pc.less_equal(number, rollouts[1]))
        return mask if where is None else pc.and_(mask, where.mask(table)), table

    def _columns(self, file: parquet.ParquetFile, names: Sequence[str]) -> pa.Table:
        """Return columns of a file; a column that only other files have is null."""
        there = set(file.schema_arrow.names)
        table = file.read([name for name in names if name in there])
        length = file.metadata.num_rows
        return pa.table(
            [
                table[name].cast(self.schema.field(name).type)
                if name in there
                else pa.nulls(length, self.schema.field(name).type)
                for name in names
            ],
            schema=pa.schema([self.schema.field(name) for name in names]),
        )


def _by_rollout(rank: int, tables: Iterator[pa.Table]) -> Iterator[tuple[int, int, pa.Table]]:
    """Cut tables, whose rollouts ascend, into (rollout, rank, its rows)."""
    for table in tables:
        numbers = table["rollout"].to_numpy()
        starts = [0, *((numbers[1:] != numbers[:-1]).nonzero()[0] + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            yield int(numbers[start]), rank, table.slice(start, stop - start)


def _opened(part: Part) -> parquet.ParquetFile:
    return parquet.ParquetFile(part.path, memory_map=True, page_checksum_verification=True)


def _apart(part: Part, rollouts: Span | None) -> bool:
    """Tell whether a file holds none of these rollouts."""
    return rollouts is not None and (part.rollouts[1] < rollouts[0] or part.rollouts[0] > rollouts[1])


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
