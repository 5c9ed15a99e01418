"""Select the rows for which an SQL expression holds. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lightning_pspo.data.rows import Row
from lightning_pspo.errors import InputError
from lightning_pspo.ledger.query import columns_in, read_filter, select


def matching(expression: str, rows: Sequence[Row], origin: str) -> list[int]:
    """Return the indices of the rows for which an SQL expression over their columns holds.

    A column that has text in some rows and numbers in others is compared as text.

    Args:
        expression: Such as ``level >= 3 and subject = 'Algebra'``; an object's part is ``metadata.level``.
        rows: The rows; a column that a row lacks is null in it.
        origin: Where the rows come from, for errors.

    Raises:
        InputError: The expression is malformed, of the wrong types, or names a column that does not exist.

    >>> matching("level > 1", [{"level": 1}, {"level": 2}, {}], "data.jsonl")
    [1]
    """
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    try:
        text = read_filter(expression, names, repeatable=True)
        columns = {name: _column([row.get(name) for row in rows]) for name in columns_in(text, names)}
        table = pa.table(columns | {"row number": pa.array(range(len(rows)), pa.int64())})
        found = select(["row number"], table.to_reader(1024), text, names)
    except InputError as error:
        raise InputError(f"{origin}: `filter`: {error}") from None
    return list(found["row number"].to_pylist())


def _column(values: list[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])
