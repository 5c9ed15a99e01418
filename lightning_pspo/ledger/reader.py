"""Read a ledger: DuckDB selects the rows, and only the files that hold them are read further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from lightning_pspo.errors import InputError, near_path, one_line
from lightning_pspo.ledger.columns import FOLDER, find_files, rollout_span
from lightning_pspo.ledger.columns import schema as ledger_schema
from lightning_pspo.ledger.query import columns_in, read_filter, select, unknown_column

Span = tuple[int, int]
"""First and last rollout, both included."""

_TABLE_ROWS = 1024  # tables that are yielded have at least as many rows, apart from the last
_MAX_ROWS, _MAX_BYTES = 50_000_000, 4 << 30  # of a file, which is read at once
_MAX_COLUMNS = 1000


@dataclass(frozen=True)
class LedgerFile:
    """One file of a ledger."""

    path: Path
    rank: int  # that wrote it
    rollouts: Span
    rows: int


def find_ledger(path: Path) -> Path:
    """Return the ledger's folder, given itself or the directory of its run."""
    for folder in (path / FOLDER, path):
        if find_files(folder):
            return folder
    missing = f"which does not exist{near_path(path)}"
    reason = f"without rollout=*.parquet in it or in its {FOLDER}/." if path.exists() else missing
    raise InputError(f"RUN must be the directory of a run with a ledger (by RolloutLedger), got {path}, {reason}")


class Ledger:
    """The rows of a run, in the order of rollouts, of ranks, and of a rank's rows.

    Files that cannot be read are named and left out; InputError if none can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[LedgerFile] = []  # those that can be read, by rank and first rollout
        self.damaged: dict[Path, str] = {}  # why; grows while reading, if a footer is whole and a page is not
        self.schema: pa.Schema = pa.schema([])  # all columns that occur
        for _, rank, path in find_files(folder):
            try:
                metadata = parquet.read_metadata(path)
                if metadata.num_columns > _MAX_COLUMNS:
                    raise ValueError(f"it must have at most {_MAX_COLUMNS} columns, got {metadata.num_columns}")
                file = LedgerFile(path, rank, rollout_span(metadata), metadata.num_rows)
                schema = metadata.schema.to_arrow_schema().remove_metadata()
                size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
                if file.rows > _MAX_ROWS or size > _MAX_BYTES:
                    raise ValueError(f"it must have at most {_MAX_ROWS} rows and {_MAX_BYTES} bytes")
                if schema != self.schema:
                    _check_columns(schema)
                    schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
                    if len(schema) > _MAX_COLUMNS:
                        raise ValueError(f"all files must have at most {_MAX_COLUMNS} columns together")
                    self.schema = schema
            except (pa.ArrowException, OSError, ValueError) as error:
                self.damaged[path] = one_line(error)
                continue
            self.files.append(file)
        if not self.files:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in self.damaged.items())
            raise InputError(f"no file of {folder} can be read: {reasons}.")
        self.files.sort(key=lambda file: (file.rank, file.rollouts))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(file.rows for file in self.files)

    @property
    def rollouts(self) -> Span:
        """First and last rollout."""
        return min(file.rollouts[0] for file in self.files), max(file.rollouts[1] for file in self.files)

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise InputError, with the nearest names, for a column that this ledger does not have."""
        for name in names:
            if name not in self.schema.names:
                raise unknown_column(name, self.schema.names)

    def find(
        self, where: str = "true", rollouts: Span | None = None, *, sort: str | None = None, descending: bool = False
    ) -> pa.Table:
        """Find the rows for which an SQL expression holds, without reading all their columns.

        Null and nan of the column to sort by come last, equal values stay in order. InputError for a column that does
        not exist, or an expression that is malformed or of the wrong types.

        Returns:
            (K, 2) with the columns ``file``, an index of `files`, and ``row``, counted in that file.
        """
        order = [(name, "ascending") for name in ("rollout", "file", "row")]
        if sort is not None:
            self.check_columns([sort])
            if pa.types.is_list(self.schema.field(sort).type):
                raise InputError(f"rows cannot be sorted by `{sort}`, which holds a list in each row.")
            order.insert(0, (sort, "descending" if descending else "ascending"))
        names = list(dict.fromkeys(name for name, _ in order))
        if where == "true":
            table = self.stream(names[:-2], rollouts).read_all().select(names)
        else:
            expression = read_filter(where, self.schema.names)
            rows = self.stream([*names[:-2], *columns_in(expression, self.schema.names)], rollouts)
            table = select(names, rows, expression, self.schema.names)
        return table.take(pc.sort_indices(table, order)).select(["file", "row"])

    def read(self, columns: Sequence[str], rows: pa.Table) -> Iterator[pa.Table]:
        """Yield tables of the rows that `find` returned in the ledger's order, read file by file."""
        self.check_columns(columns)
        pieces: list[pa.Table] = []
        for _, piece in self._read(columns, rows):
            pieces.append(piece)
            if sum(table.num_rows for table in pieces) >= _TABLE_ROWS:
                yield pa.concat_tables(pieces)
                pieces = []
        if pieces:
            yield pa.concat_tables(pieces)

    def read_sorted(self, columns: Sequence[str], rows: pa.Table) -> pa.Table:
        """Read rows that `find` returned in any order, all at once."""
        self.check_columns(columns)
        order = pc.sort_indices(rows, [("file", "ascending"), ("row", "ascending")])
        pieces = list(self._read(columns, rows.take(order)))
        positions_read = [order[positions.start : positions.stop] for positions, _ in pieces]
        table = pa.concat_tables([self.schema.empty_table().select(columns), *(piece for _, piece in pieces)])
        return table.take(pc.sort_indices(pa.chunked_array(positions_read, order.type)))

    def scan(self, columns: Sequence[str], where: str = "true", rollouts: Span | None = None) -> Iterator[pa.Table]:
        """Read the columns of all rows that are wanted: `find`, then `read`."""
        yield from self.read(columns, self.find(where, rollouts))

    def stream(self, columns: Sequence[str], rollouts: Span | None = None) -> pa.RecordBatchReader:
        """Return columns of the rows of some rollouts, read while they are used, a file at a time.

        Beside ``columns`` it has ``rollout``; ``file``, an index of `files`; and ``row``, counted in that file.
        """
        self.check_columns(columns)
        names = list(dict.fromkeys(["rollout", *columns]))
        added = [pa.field("file", pa.int32()), pa.field("row", pa.int64())]
        schema = pa.schema([*(self.schema.field(name) for name in names), *added])
        first, last = rollouts or self.rollouts

        def batches() -> Iterator[pa.RecordBatch]:
            for index, file in enumerate(self.files):
                if file.rollouts[1] < first or file.rollouts[0] > last or (table := self._table(file, names)) is None:
                    continue
                numbers = np.arange(table.num_rows)
                columns = [*table.columns, pa.array(np.full_like(numbers, index), pa.int32()), pa.array(numbers)]
                number = pc.field("rollout")
                yield from pa.table(columns, schema=schema).filter((number >= first) & (number <= last)).to_batches()

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _read(self, columns: Sequence[str], rows: pa.Table) -> Iterator[tuple[slice, pa.Table]]:
        """Yield stretches of rows that lie in one file: their positions among ``rows``, and their columns."""
        files, numbers = rows["file"].to_numpy(), rows["row"].to_numpy()
        starts = np.flatnonzero(np.diff(files, prepend=-1))
        tables: dict[int, tuple[int, pa.Table | None]] = {}  # rank -> the file that was read last
        for start, stop in zip(starts, [*starts[1:], len(files)][: len(starts)], strict=True):
            index, file = int(files[start]), self.files[files[start]]
            if tables.get(file.rank, (-1, None))[0] != index:
                tables[file.rank] = index, self._table(file, columns)
            table = tables[file.rank][1]
            if table is not None:
                is_all = stop - start == table.num_rows
                yield slice(start, stop), table if is_all else table.take(numbers[start:stop])

    def _table(self, file: LedgerFile, columns: Sequence[str]) -> pa.Table | None:
        """Return columns of a file, null where only other files have them; None if it is damaged."""
        if file.path in self.damaged:
            return None
        fields = [self.schema.field(name) for name in columns]
        try:
            with parquet.ParquetFile(file.path, memory_map=True, page_checksum_verification=True) as opened:
                table = _bounded(opened, [name for name in columns if name in opened.schema_arrow.names])
                length = opened.metadata.num_rows
            known = {name: table[name] for name in table.column_names}
            arrays = [known.get(field.name, pa.nulls(length)).cast(field.type) for field in fields]
            return pa.table(arrays, schema=pa.schema(fields))
        except (pa.ArrowException, OSError, ValueError) as error:
            self.damaged[file.path] = one_line(error)
            return None


def _bounded(file: parquet.ParquetFile, columns: list[str]) -> pa.Table:
    """Read columns; ValueError for more than they may have in memory, where a text may stand once for many rows."""
    stored = sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))
    batches, size = [], 0
    for batch in file.iter_batches(max(1, min(_TABLE_ROWS, _MAX_BYTES // max(1, stored))), columns=columns):
        size += batch.nbytes
        if size > _MAX_BYTES:
            raise ValueError(f"its columns must have at most {_MAX_BYTES} bytes in memory")
        batches.append(batch)
    fields = [file.schema_arrow.field(name) for name in columns]
    return pa.Table.from_batches(batches, pa.schema(fields))


def _check_columns(schema: pa.Schema) -> None:
    """Raise ValueError unless all columns hold numbers, texts, or lists of them, under names of their own."""
    names = [name.lower() for name in schema.names]
    if len(set(names)) < len(names) or {"file", "row"} & set(names):
        raise ValueError(f"its columns must have names of their own, got {', '.join(schema.names)[:200]}")
    known = {field.name: _content(field.type) for field in ledger_schema()}
    for field in schema:
        content = _content(field.type)
        expected = known.get(field.name, content if content.split()[-1] in ("numbers", "texts") else "numbers or texts")
        if content != expected:
            raise ValueError(f"`{field.name}` must hold {expected}, got {content}")


def _content(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"lists of {_content(kind.value_type)}"
    if kind in (pa.string(), pa.large_string()):
        return "texts"
    is_number = pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64(), pa.bool_())
    return "numbers" if is_number else f"values of type {str(kind)[:60]}"
