"""Reading of local rows, with errors that name file and row. Needs no torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.files import read_objects, unique_keys

Row = Mapping[str, Any]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Decimal(float):
    """A number of JSON that remembers how it was written, so that no digit of an answer is lost."""

    text: str

    def __new__(cls, text: str) -> Decimal:
        """Read a number."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        """Return it as it was written."""
        return self.text


_parse = partial(json.loads, parse_float=Decimal, object_pairs_hook=unique_keys)


def read_rows(file: Path, *, lines: bool = False) -> Iterator[tuple[int, Row]]:
    """Read a local file's rows as they are asked for, without the hub's libraries, whose cache would be written to.

    Args:
        file: Its suffix decides how it is read; a ``.json`` file holds one array of objects, or JSON Lines.
        lines: Read JSON Lines whatever the suffix.

    Yields:
        The row's number from 1 (in JSON Lines: the line's, blank ones counted) and its fields.

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
        for number, _, row in read_objects(file, "line", _parse):
            yield number, row
    except ValueError as error:
        raise InputError(str(error)) from None


def _read_array(file: Path) -> Iterator[tuple[int, Row]]:
    data = file.read_bytes()
    try:
        rows = _parse(data.decode("utf-8-sig"))
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
    """Return a field as stripped text.

    A number is written in full (12345678901234567890.5), without a fraction of zeros (27.0 is "27"). A list of one
    value is that value, and a conversation of one user's message is its content, as data sets for RL tools have them.

    Args:
        row: A row of a data file.
        field: Its name; ``reward_model.ground_truth`` is ``ground_truth`` in the object ``reward_model``.
        where: File and row, for the error.

    Raises:
        InputError: The field is missing, empty, or neither text nor a finite number.

    >>> text_field({"answer": 27.0}, "answer", "data.jsonl, row 1"), text_field({"a": {"b": ["5"]}}, "a.b", "row 1")
    ('27', '5')
    """
    value = _content(_find(row, field, where))
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, str) and not is_number:
        hint = _conversation_hint(value)
        raise InputError(f"{where}: field {field!r} must be text or a finite number, got {str(value)[:40]!r}{hint}.")
    text = str(value).strip()
    if is_number and text.partition(".")[2].strip("0") == "":
        text = text.partition(".")[0]
    if not text:
        raise InputError(f"{where}: field {field!r} must not be empty.")
    if any("\ud800" <= character <= "\udfff" for character in text):  # JSON's escapes can spell them, no tokenizer can
        raise InputError(f"{where}: field {field!r} must be valid Unicode, got half of a surrogate pair.")
    return text


def _find(row: Row, field: str, where: str) -> Any:
    if field in row:
        return row[field]
    outer, _, inner = field.partition(".")
    if inner and isinstance(row.get(outer), Mapping):
        return _find(row[outer], inner, where)
    nested = [
        f"{name}.{key}"
        for name, value in row.items()
        if isinstance(value, Mapping)
        for key in value
        if key in (field, "ground_truth")
    ]
    hint = f"; set the field's name to {nested[0]!r}?" if nested else "."
    raise InputError(f"{where}: must have the field {field!r}, got {sorted(map(str, row))}{hint}")


def _content(value: Any) -> Any:
    """Return the only value of a list, and the text of a conversation's only message."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and value.get("role") == "user" and isinstance(value.get("content"), str):
        return value["content"]
    return value


def _conversation_hint(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "role" in turn for turn in value):
        return " (a conversation of several messages: keep the user's question, and set `data.system_prompt`)"
    if isinstance(value, list) and value:
        return f" (a list of {len(value)} values: join them into one text, as '1, 2')"
    return ""
