"""Rows of completions and of judgements, in JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.files import lines_of, read_objects, replacing, text_value, unique_keys
from lightning_pspo.judging.base import Item, Judgement
from lightning_pspo.judging.parsing import is_score
from lightning_pspo.judging.rubric import CHOICES, DIMENSIONS, RUBRIC_VERSION

FIELDS = ("id", "question", "completion", "answer")
"""What every row of completions has."""


@dataclass(frozen=True, slots=True)
class Record:
    """A row of completions."""

    item: Item
    fields: dict[str, Any]
    where: str  # file and row, for messages


def read_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file, blank lines left out; InputError names the line of a row that cannot be used."""
    if not path.is_file():
        raise InputError(f"{path} must be a file of completions that exists.")
    parse = partial(json.loads, object_pairs_hook=unique_keys)
    try:
        for number, _, fields in read_objects(path, parse=parse):
            where = f"{path}, row {number}"
            numbers = {name: str(fields[name]) for name in ("id", "answer") if type(fields.get(name)) in (int, float)}
            yield Record(Item(*(text_value(fields | numbers, name, where) for name in FIELDS)), fields, where)
    except ValueError as error:
        raise InputError(str(error)) from None


def judgement_row(judgement: Judgement, model: str, *, pair: bool = False, **more: Any) -> bytes:
    """Return the judgement of an item or of a pair as a line of ASCII; ``more`` are further fields."""
    names = ("preference", "consistent", "reason") if pair else ("scores", "reason")
    row: dict[str, Any] = {"id": judgement.id, **more} | {name: getattr(judgement, name) for name in names}
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


def row_judgement(row: Any) -> Judgement:
    """Return the judgement in a row of ``judgement_row``; ValueError if it is something else."""
    if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("key"), str):
        raise ValueError("not a row of judgements")
    scores, preference, consistent = row.get("scores"), row.get("preference"), row.get("consistent")
    repeats = row.get("repeats", [] if scores is None else [scores])
    reason, injections = row.get("reason"), row.get("injections", [])
    unusable, asked = row.get("unusable", 0), row.get("asked", 0)
    valid = (
        all(isinstance(part, list) for part in (repeats, injections))
        and all(map(_are_scores, repeats if scores is None else [scores, *repeats]))
        and preference in (None, *CHOICES)
        and consistent in (None, True, False)
        and (reason is None or isinstance(reason, str))
        and all(isinstance(kind, str) for kind in injections)
        and type(unusable) is type(asked) is int
    )
    if not valid:
        raise ValueError("not a row of judgements")
    return Judgement(
        id=str(row["id"]),
        key=row["key"],
        scores=scores,
        repeats=tuple(repeats),
        preference=preference,
        consistent=consistent,
        reason=reason,
        unusable=unusable,
        asked=asked,
        injections=tuple(injections),
    )


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == set(DIMENSIONS) and all(map(is_score, value.values()))


def keep_finished_rows(path: Path, *, pairs: bool = False, repeats: int = 1) -> dict[str, str]:
    """Drop the rows of an output that are cut short or not judged, and return id -> key of the others.

    A row with fewer usable replies than ``repeats`` goes, too. InputError for what is neither such a row nor its start.
    """
    finished: dict[str, str] = {}
    if not path.exists():
        return finished
    with path.open("rb") as stream, replacing(path) as output:
        for number, line in enumerate(lines_of(stream, str(path), "row"), start=1):
            try:
                judgement = row_judgement(json.loads(line))
            except (ValueError, RecursionError) as error:
                if isinstance(error, UnicodeDecodeError | json.JSONDecodeError) and _is_cut(line):
                    break
                raise InputError(f"{path}, row {number}: must be a row of judgements: give another --output.") from None
            judged = judgement.preference is not None if pairs else len(judgement.repeats) >= repeats
            if judged and judgement.reason is None:
                finished[judgement.id] = judgement.key
                output.write(line.rstrip() + b"\n")
    return finished


def _is_cut(line: bytes) -> bool:
    """Tell whether a line may be the beginning of a row of judgements; a loss of power may leave zeros at its end."""
    start = b'{"id": '
    line = line.rstrip(b"\0")
    return not line.endswith(b"\n") and line[: len(start)] == start[: len(line)]
