"""Grade a ledger's completions again, without generating anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_pspo.errors import InputError
from lightning_pspo.grading import Attempt, Grade
from lightning_pspo.ledger.reader import Ledger

GRADED = ("verdict", "extracted", "rule")
_ATTEMPT = ("completion", "answer", "question")
_ROWS = 4096  # graded in one call


def regrade(ledger: Ledger, grader: Any, rows: pa.Table) -> Iterator[pa.Table]:
    """Yield rows that `Ledger.find` returned, graded again: ``verdict``, and ``old_verdict``, the earlier one, etc.

    The grader gets what the run's had, an `Attempt` for each row, but for a task's own scorer.
    """
    ledger.check_columns([*_ATTEMPT, "finish_reason", *GRADED])
    for table in ledger.read(ledger.schema.names, rows):
        for start in range(0, table.num_rows, _ROWS):
            yield _regraded(table.slice(start, _ROWS), grader)


def regraded_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of regraded rows of a ledger with the columns ``schema``."""
    old = [pa.field(f"old_{name}", pa.string()) for name in GRADED]
    return pa.schema([*schema, *old, pa.field("changed", pa.bool_())])


def _regraded(rows: pa.Table, grader: Any) -> pa.Table:
    texts = (pc.fill_null(rows[name], "").to_pylist() for name in _ATTEMPT)
    truncated = pc.fill_null(pc.equal(rows["finish_reason"], "length"), False).to_pylist()
    attempts = [Attempt(*attempt) for attempt in zip(*texts, truncated, strict=True)]
    grades: Sequence[Grade] = grader.grade(attempts)
    if len(grades) != len(attempts) or not all(isinstance(grade, Grade) for grade in grades):
        raise InputError(
            f"the grader {type(grader).__name__} must return a Grade for each of {len(attempts)} attempts."
        )
    new = {
        "verdict": [grade.verdict.value for grade in grades],
        "extracted": [grade.extracted for grade in grades],
        "rule": [grade.rule for grade in grades],
    }
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    columns |= {name: pa.array(values, pa.string()) for name, values in new.items()}
    table = pa.table(columns | {f"old_{name}": rows[name] for name in GRADED})
    return table.append_column("changed", pc.not_equal(table["verdict"], table["old_verdict"]))
