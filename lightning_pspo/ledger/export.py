"""Rows of a ledger as JSON Lines, CSV or Parquet, written as they come."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from lightning_pspo.errors import InputError
from lightning_pspo.files import replacing

_FORMULA = re.compile(r"[\s\0\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


class Sink(ABC):
    """A file that tables are appended to.

    Args:
        file: Where to write.
        schema: Columns of the tables.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self.file = file
        self.schema = schema

    @abstractmethod
    def write(self, table: pa.Table) -> None:
        """Append the rows."""

    def close(self) -> None:
        """Write what is buffered; the file itself stays open."""
        self.file.flush()


class JSONLines(Sink):
    """One object per row. JSON has no nan and no infinity: they become null."""

    def write(self, table: pa.Table) -> None:
        """Append the rows."""
        for row in plain_rows(table):
            self.file.write((json.dumps(_finite(row), ensure_ascii=False) + "\n").encode())


class CSV(Sink):
    """A line of names, then one line per row; lists are JSON.

    No cell can be executed by a spreadsheet: texts (and names) that begin like a formula get a leading apostrophe.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        super().__init__(file, schema)
        self._text = io.TextIOWrapper(file, "utf-8", newline="")
        self._writer = csv.writer(self._text)
        self._writer.writerow(map(_cell, schema.names))

    def write(self, table: pa.Table) -> None:
        """Append the rows."""
        self._writer.writerows(map(_cell, _finite(row).values()) for row in plain_rows(table))

    def close(self) -> None:
        """Write what is buffered."""
        self._text.flush()
        self._text.detach()


class Parquet(Sink):
    """One file with the columns as they are."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        super().__init__(file, schema)
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Append the rows."""
        self._writer.write_table(table)

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


SINKS: dict[str, type[Sink]] = {".jsonl": JSONLines, ".csv": CSV, ".parquet": Parquet}


def check_output(path: Path) -> None:
    """Raise InputError for a file that cannot be written, before work goes into its content."""
    if path.suffix.lower() not in SINKS:
        raise InputError(f"--output must end in {', '.join(SINKS)}, got {path}.")
    if path.is_dir():
        raise InputError(f"--output must be a file, got the folder {path}.")


def write_file(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables to a file, which replaces an old one once all are written; return the number of rows.

    Args:
        path: Its suffix decides on the format.
        schema: Columns of the tables.
        tables: Read as they are written.

    Raises:
        InputError: The suffix belongs to no format.
        OSError: The file cannot be written.
    """
    check_output(path)
    rows = 0
    with replacing(path) as file:
        sink = SINKS[path.suffix.lower()](file, schema)
        try:
            for table in tables:
                sink.write(table)
                rows += table.num_rows
        finally:
            sink.close()
    return rows


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows of plain values; a float32 becomes the shortest number that means it.

    >>> plain_rows(pa.table({"reward": pa.array([0.1], pa.float32())}))
    [{'reward': 0.1}]
    """
    fields = {name: _shortest(table[name].combine_chunks()) for name in table.column_names}
    rows: list[dict[str, Any]] = pa.table(fields).to_pylist()
    return rows


def _shortest(values: pa.Array) -> pa.Array:
    if pa.types.is_list(values.type):
        flat = _shortest(values.flatten())
        sizes = pa.compute.list_value_length(values).fill_null(0).to_numpy()
        offsets = pa.array([0, *sizes.cumsum().tolist()], pa.int32())
        return pa.ListArray.from_arrays(offsets, flat, mask=values.is_null())
    return values.cast(pa.string()).cast(pa.float64()) if values.type == pa.float32() else values


def _cell(value: Any) -> Any:
    """Return a value as a cell of CSV: numbers as numbers, no text that a spreadsheet takes for a formula.

    >>> _cell(-0.5), _cell([1, None]), _cell("-0.5"), _cell(" =cmd|' /C calc'!A0")
    (-0.5, '[1, null]', '-0.5', "' =cmd|' /C calc'!A0")
    """
    if isinstance(value, list):
        return json.dumps(value)
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with None instead of what is not finite.

    >>> _finite({"reward": math.nan, "ratio_max": [1.0, math.inf]})
    {'reward': None, 'ratio_max': [1.0, None]}
    """

    def mend(value: Any) -> Any:
        if isinstance(value, list):
            return [mend(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: mend(value) for name, value in row.items()}
