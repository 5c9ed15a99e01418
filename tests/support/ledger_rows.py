"""Made-up rows of a ledger."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from lightning_pspo.ledger import Ledger, schema


def rollout_rows(
    number: int,
    rows: int = 4,
    rank: int = 0,
    world_size: int = 1,
    *,
    terms: tuple[str, ...] = (),
    attempt: int = 0,
    **columns: Any,
) -> pa.Table:
    """Return the rows of a rollout; each completion says which row it is, and of which attempt."""
    columns_schema = schema(terms)
    values: dict[str, Any] = {
        field.name: [[1.0, 1.0 + row] if row else [] for row in range(rows)]
        for field in columns_schema
        if pa.types.is_list(field.type)
    }
    values |= {
        "rollout": [number] * rows,
        "step": [2 * number] * rows,
        "seed": [7] * rows,
        "rank": [rank] * rows,
        "world_size": [world_size] * rows,
        "position": [number * 10 + rank] * rows,
        "sample": list(range(rows)),
        "id": [f"p{number % 3}"] * rows,
        "question": ["1 + 1?"] * rows,
        "answer": ["2"] * rows,
        "completion": [f"rollout {number} row {row} attempt {attempt}" for row in range(rows)],
        "length_tokens": list(range(1, rows + 1)),
        "finish_reason": ["eos"] * rows,
        "verdict": [["correct", "wrong"][row % 2] for row in range(rows)],
        "extracted": [["2", None][row % 2] for row in range(rows)],
        "rule": ["hash"] * rows,
        "reward": [[1.0, 0.1][row % 2] for row in range(rows)],
        "advantage": [float(number)] * rows,
        **{f"reward/{term}": [0.5] * rows for term in terms},
    } | columns
    arrays = [pa.array(values[field.name], field.type) for field in columns_schema]
    return pa.table(arrays, schema=columns_schema)


def expected_texts(attempts: dict[int, int], rows: int = 4) -> list[str]:
    """Return the completions of `rollout_rows`, given each rollout's attempt."""
    return [f"rollout {n} row {row} attempt {attempt}" for n, attempt in attempts.items() for row in range(rows)]


def column(folder: Path, name: str, where: str = "true") -> list[Any]:
    """Return a column of a ledger."""
    return [value for table in Ledger(folder).scan([name], where) for value in table[name].to_pylist()]
