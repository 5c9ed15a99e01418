"""Grade a ledger's completions again, without generating anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_pspo.errors import InputError
from lightning_pspo.grading import Grade
from lightning_pspo.ledger.reader import Ledger

GRADED = ("verdict", "extracted", "rule")
_ROWS = 4096  # graded in one call


def regrade(ledger: Ledger, grader: Any, rows: pa.Table) -> Iterator[pa.Table]:
    """Yield rows that `Ledger.find` returned, graded again: ``verdict``, and ``old_verdict``, the earlier one, etc."""
    ledger.check_columns(["completion", "answer", *GRADED])
    for table in ledger.read(ledger.schema.names, rows):
        for start in range(0, table.num_rows, _ROWS):
            yield _regraded(table.slice(start, _ROWS), grader)


def regraded_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of regraded rows of a ledger with the columns ``schema``."""
    old = [pa.field(f"old_{name}", pa.string()) for name in GRADED]
    return pa.schema([*schema, *old, pa.field("changed", pa.bool_())])


def _regraded(rows: pa.Table, grader: Any) -> pa.Table:
    completions, answers = (pc.fill_null(rows[name], "").to_pylist() for name in ("completion", "answer"))
    pairs = list(zip(completions, answers, strict=True))
    grades: Sequence[Grade] = grader.grade(pairs)
    if len(grades) != len(pairs) or not all(isinstance(grade, Grade) for grade in grades):
        raise InputError(f"the grader {type(grader).__name__} must return a Grade for each of {len(pairs)} pairs.")
    new = {
        "verdict": [grade.verdict.value for grade in grades],
        "extracted": [grade.extracted for grade in grades],
        "rule": [grade.rule for grade in grades],
    }
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    columns |= {name: pa.array(values, pa.string()) for name, values in new.items()}
    table = pa.table(columns | {f"old_{name}": rows[name] for name in GRADED})
    return table.append_column("changed", pc.not_equal(table["verdict"], table["old_verdict"]))
