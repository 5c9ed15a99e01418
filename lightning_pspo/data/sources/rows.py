"""Reading of local rows, with errors that name file and row."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.files import read_objects

Row = Mapping[str, Any]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(file: Path, *, lines: bool = False) -> Iterator[tuple[int, Row]]:
    """Read a local file's rows as they are asked for, without the hub's libraries, whose cache would be written to.

    Args:
        file: Its suffix decides how it is read; a ``.json`` file holds one array of objects, or JSON Lines.
        lines: Read JSON Lines whatever the suffix.

    Yields:
        The 1-based row (in JSON Lines: the line, blank ones counted) and its fields.

    Raises:
        InputError: The file cannot be read, is not in its format, or is not UTF-8.
    """
    suffix = ".jsonl" if lines else file.suffix.lower()
    try:
        if suffix == ".csv":
            yield from _read_csv(file)
        elif suffix == ".parquet":
            yield from _read_parquet(file)
        elif suffix == ".json" and _begins_with_bracket(file):
            yield from _read_array(file)
        else:
            yield from _read_lines(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}.") from error


def _begins_with_bracket(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _read_lines(file: Path) -> Iterator[tuple[int, Row]]:
    try:
        for number, _, row in read_objects(file, "line"):
            yield number, row
    except ValueError as error:
        raise InputError(str(error)) from None


def _read_array(file: Path) -> Iterator[tuple[int, Row]]:
    data = file.read_bytes()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {line}: not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: malformed JSON: {error}.") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{file}, row {number}: must be a JSON object, got {str(row)[:40]!r}.")
        yield number, row


def _read_csv(file: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    with file.open(encoding="utf-8-sig", newline="") as stream:
        try:
            for number, row in enumerate(csv.DictReader(stream, strict=True), start=1):
                yield number, {key: value for key, value in row.items() if value is not None}
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8 (somewhere after row {number}).") from None
        except csv.Error as error:
            raise InputError(f"{file}, row {number + 1}: malformed CSV: {error}.") from None


def _read_parquet(file: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: malformed Parquet: {str(error)[:200]}.") from None


def text_field(row: Row, field: str, where: str) -> str:
    """Return a field as stripped text; a number becomes its shortest form (27.0 is "27").

    Raises:
        InputError: The field is missing, empty, or neither text nor a finite number.

    >>> text_field({"answer": 27.0}, "answer", "data.jsonl, row 1")
    '27'
    """
    if field not in row:
        raise InputError(f"{where}: must have the field {field!r}, got {sorted(map(str, row))}.")
    value = row[field]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, str) and not is_number:
        raise InputError(f"{where}: field {field!r} must be text or a finite number, got {str(value)[:40]!r}.")
    text = str(value).strip()
    if not text:
        raise InputError(f"{where}: field {field!r} must not be empty.")
    if any("\ud800" <= character <= "\udfff" for character in text):  # JSON's escapes can spell them, no tokenizer can
        raise InputError(f"{where}: field {field!r} must be valid Unicode, got half of a surrogate pair.")
    return text
