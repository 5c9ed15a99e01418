"""Rows of completions and of judgements, in JSON Lines."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_pspo.files import read_objects, replacing
from lightning_pspo.judging.items import Item, Judgement
from lightning_pspo.judging.rubric import CHOICES, DIMENSIONS, RUBRIC_VERSION, SCORES

_FIELDS = ("id", "question", "completion", "answer")


@dataclass(frozen=True, slots=True)
class Record:
    """A row of completions.

    Attributes:
        item: What is judged.
        fields: All that the row has.
        where: File and row, for messages.
    """

    item: Item
    fields: dict[str, Any]
    where: str


def read_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file, blank lines left out.

    Raises:
        ValueError: A row cannot be used; its number is that of the line.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a file of completions that exists.")
    for number, _, fields in read_objects(path):
        where = f"{path}, row {number}"
        yield Record(Item(*(_text(fields, name, where) for name in _FIELDS)), fields, where)


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    if name not in fields:
        raise ValueError(f"{where}: must have the field {name!r}, got {sorted(fields)!s:.200}.")
    value = fields[name]
    if name in ("id", "answer") and type(value) in (int, float):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {name!r} must be one text, got {json.dumps(value):.80}.")
    return value


def judgement_row(judgement: Judgement, model: str, *, pair: bool = False, **more: Any) -> bytes:
    """Return the judgement of an item or of a pair as a line of ASCII; ``more`` are further fields."""
    row: dict[str, Any] = {"id": judgement.id, **more}
    if pair:
        row |= {"preference": judgement.preference, "consistent": judgement.consistent}
    else:
        row |= {"scores": judgement.scores}
    row |= {"reason": judgement.reason}
    row |= {"repeats": list(judgement.repeats)} if len(judgement.repeats) > 1 else {}
    row |= {
        "injections": list(judgement.injections),
        "unusable": judgement.unusable,
        "asked": judgement.asked,
        "judge": model,
        "rubric": RUBRIC_VERSION,
        "key": judgement.key,
    }
    return json.dumps(row).encode() + b"\n"


def row_judgement(row: Mapping[str, Any]) -> Judgement:
    """Return the judgement that a row of ``judgement_row`` holds."""
    scores = row.get("scores")
    repeats = row.get("repeats") or ([scores] if scores else [])
    return Judgement(
        str(row["id"]),
        str(row["key"]),
        scores,
        tuple(repeats),
        row.get("preference"),
        row.get("consistent"),
        row.get("reason"),
        int(row.get("unusable", 0)),
        int(row.get("asked", 0)),
        tuple(row.get("injections", ())),
    )


def kept_rows(path: Path, result: str, repeats: int = 1) -> dict[str, str]:
    """Keep the rows of an output that are whole and judged, drop the others, and return id -> key.

    Args:
        path: The output, which may not be there yet.
        result: Field that a judged row has: ``scores`` or ``preference``.
        repeats: A row with fewer usable replies is asked again.

    Raises:
        ValueError: A whole line is no row of an output.
    """
    found: dict[str, str] = {}
    if not path.exists():
        return found

    with path.open("rb") as stream, replacing(path) as kept:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line) if line.endswith(b"\n") else {}
                whole = not row or (isinstance(row["key"], str) and "id" in row)
            except (ValueError, KeyError, TypeError, RecursionError):
                whole = False
            if not whole:
                raise ValueError(f"{path}, row {number}: must be a row of judgements: give another --output.")
            if row and row.get("reason") is None and _is_result(row, result, repeats):
                found[str(row["id"])] = row["key"]
                kept.write(line)
    return found


def _is_result(row: Mapping[str, Any], result: str, repeats: int) -> bool:
    value = row.get(result)
    if result == "preference":
        return value in CHOICES
    if not isinstance(value, dict) or value.keys() != set(DIMENSIONS):
        return False
    valid = all(type(score) is int and score in SCORES for score in value.values())
    return valid and max(1, len(row.get("repeats") or [])) >= repeats


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing the file meanwhile.

    Raises:
        ValueError: Another process is writing it.
    """
    with path.with_name(f"{path.name}.lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--output must not be in use, but another process is writing {path}.") from None
        yield
