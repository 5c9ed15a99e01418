"""Stream rows of a ledger into a JSON Lines, CSV or Parquet file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from lightning_pspo.errors import InputError
from lightning_pspo.files import replacing

_FORMULA_SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_Write = Callable[[pa.Table], Any]


@contextlib.contextmanager
def _jsonl(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    """Write one object per row; JSON has no nan and no infinity, which become null."""
    yield lambda table: file.writelines(
        (json.dumps(row, ensure_ascii=False) + "\n").encode() for row in map(_finite, plain_rows(table))
    )


@contextlib.contextmanager
def _csv(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    """Write a line of names, then one line per row; lists are JSON."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(map(_cell, schema.names))
    try:
        yield lambda table: writer.writerows(map(_cell, _finite(row).values()) for row in plain_rows(table))
    finally:
        text.detach()


@contextlib.contextmanager
def _parquet(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    """Write the columns as they are."""
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer.write_table


WRITERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def check_output(path: Path, ledger: Path) -> None:
    """Raise InputError for a file that cannot be written, or lies in a ledger, before work goes into its content."""
    if path.suffix.lower() not in WRITERS:
        raise InputError(f"--output must end in {', '.join(WRITERS)}, got {path}.")
    if path.is_dir():
        raise InputError(f"--output must be a file, got the folder {path}.")
    if os.path.dirname(os.path.realpath(path)) == os.path.realpath(ledger):
        raise InputError(f"--output must not be in the ledger that is read, got {path}.")


def write_file(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables in the format of a file's suffix; return the number of rows. An old file is replaced at the end."""
    rows = 0
    with replacing(path) as file, WRITERS[path.suffix.lower()](file, schema) as write:
        for table in tables:
            write(table)
            rows += table.num_rows
    return rows


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows of plain values; a float32 becomes the shortest number that means it."""
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
    """Return a value as a cell of CSV, with an apostrophe before a text that a spreadsheet would execute."""
    if isinstance(value, list):
        return json.dumps(value)
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    shown = next((character for character in value if character.isprintable() and character != " "), "")
    return f"'{value}" if value[:1] in ("\t", "\r", "\n") or (shown and shown in _FORMULA_SIGNS) else value


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with None instead of what is not finite."""

    def mend(value: Any) -> Any:
        if isinstance(value, list):
            return [mend(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: mend(value) for name, value in row.items()}
