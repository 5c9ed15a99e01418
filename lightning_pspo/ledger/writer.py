"""Write a ledger so that a crash at any moment neither loses nor duplicates a finished rollout."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from lightning_pspo.errors import check_at_least
from lightning_pspo.files import sync_entry
from lightning_pspo.ledger.columns import file_name, find_files, rollout_span

_log = logging.getLogger(__name__)


class LedgerWriter:
    """Writes one rank's rows, a rollout at a time.

    A file holds the rollouts from the one in its name up to the next file. The newest file is rewritten with every
    rollout, under a hidden name that replaces it once it is on disk, until it is full: at any moment every rollout that
    was written is in exactly one complete file. A rollout that a resumed run repeats replaces its earlier rows.
    ``rows_per_file`` or ``bytes_per_file`` in memory, each at least 1, make a file full.
    """

    def __init__(
        self, folder: Path, *, rank: int = 0, rows_per_file: int = 4096, bytes_per_file: int = 8 << 20
    ) -> None:
        check_at_least("rank", rank, 0)
        check_at_least("rows_per_file", rows_per_file, 1)
        check_at_least("bytes_per_file", bytes_per_file, 1)
        self.folder, self.rank = folder, rank
        self.rows_per_file, self.bytes_per_file = rows_per_file, bytes_per_file
        self._firsts: list[int] = []  # first rollout of each file of this rank
        self._first: int | None = None  # first rollout of the file whose rows are in memory
        self._rows: pa.Table | None = None

    def begin(self, finished: int, world_size: int) -> None:
        """Prepare the files of an earlier session. Every rank calls it before it writes its first rollout.

        Rollouts after ``finished`` that another number of ranks wrote are dropped, since these ranks cannot replace
        them one by one. Rank 0 also looks after the files of ranks that no longer exist.
        """
        for partial in self.folder.glob(f".*-rank={self.rank}.parquet.partial"):  # left by a crash
            partial.unlink()
        self._drop_after(finished, world_size, other_ranks=True)

    def write(self, rows: pa.Table) -> None:
        """Add at least one row, all of one rollout, or replace the rows that it has."""
        number = int(rows["rollout"][0].as_py())
        first = self._file_for(number)
        remaining = [] if self._rows is None else [self._rows]
        if self._rows is not None and number <= self._last():
            numbers = self._rows["rollout"]
            remaining = [self._rows.filter(pc.less(numbers, number)), self._rows.filter(pc.greater(numbers, number))]
        table = pa.concat_tables([*remaining[:1], rows, *remaining[1:]], promote_options="default")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / file_name(first, self.rank), table)
        self._first, self._rows = first, table
        if first not in self._firsts:
            self._firsts = sorted([*self._firsts, first])

    def end(self, finished: int, world_size: int) -> None:
        """Drop the rollouts after ``finished``, left by an interrupted run that went further. Every rank calls it."""
        self._drop_after(finished, world_size)

    def _drop_after(self, finished: int, world_size: int, *, other_ranks: bool = False) -> None:
        for _, rank, path in find_files(self.folder):
            if rank == self.rank or (self.rank == 0 and rank >= world_size):
                self._drop(path, finished, world_size if other_ranks else None)
        self._firsts = [first for first, rank, _ in find_files(self.folder) if rank == self.rank]
        self._first, self._rows = None, None

    def _last(self) -> int:
        assert self._rows is not None
        return int(pc.max(self._rows["rollout"]).as_py())

    def _file_for(self, number: int) -> int:
        """Return the first rollout of the file that ``number`` belongs in, after loading its rows."""
        first = max((first for first in self._firsts if first <= number), default=None)
        if first is not None and first != self._first:
            self._first, self._rows = first, self._read(self.folder / file_name(first, self.rank))
        if first is None or self._rows is None:
            self._rows = None
            return number
        full = self._rows.num_rows >= self.rows_per_file or self._rows.nbytes >= self.bytes_per_file
        if full and number > self._last():
            self._rows = None
            return number
        return first

    def _read(self, path: Path) -> pa.Table | None:
        """Return a file's rows; one that cannot be read is renamed, with a warning."""
        try:
            return parquet.ParquetFile(path, page_checksum_verification=True).read()
        except (pa.ArrowException, OSError) as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            self._firsts = [first for first in self._firsts if file_name(first, self.rank) != path.name]
            _log.warning("%s cannot be read (%s) and is renamed to %s.", path, str(error)[:200], aside.name)
            return None

    def _drop(self, path: Path, finished: int, other_than: int | None) -> None:
        """Drop a file's rows after ``finished``, if asked only those of ``world_size`` other than ``other_than``."""
        try:
            if rollout_span(parquet.read_metadata(path))[1] <= finished:
                return
        except (pa.ArrowException, OSError, ValueError) as error:
            _log.warning("%s cannot be read: %s", path, str(error)[:200])
            return
        rows = self._read(path)
        if rows is None:
            return
        dropped = pc.greater(rows["rollout"], finished)
        if other_than is not None:
            dropped = pc.and_(dropped, pc.not_equal(rows["world_size"], other_than))
        remaining = rows.filter(pc.invert(dropped))
        if remaining.num_rows == rows.num_rows:
            return
        _log.info("Dropped %d rows of %s: their rollouts will be repeated.", rows.num_rows - remaining.num_rows, path)
        if remaining.num_rows:
            replace_file(path, remaining)
        else:
            path.unlink()


def replace_file(path: Path, table: pa.Table) -> None:
    """Write a table so that the name only ever stands for a complete file on disk."""
    partial = path.with_name(f".{path.name}.partial")
    parquet.write_table(table, partial, compression="zstd", compression_level=1, write_page_checksum=True)
    sync_entry(partial)
    partial.replace(path)
    sync_entry(path.parent)
