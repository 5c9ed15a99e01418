"""Filters: what they choose, against plain Python, and what they refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from lightning_pspo.ledger import parse_filter, schema

ROWS: list[dict[str, Any]] = [
    {"rollout": 1, "verdict": "correct", "extracted": "4", "answer": "4", "reward": 1.0, "ratio_max": [1.0, 1.3]},
    {"rollout": 1, "verdict": "wrong", "extracted": "5", "answer": "4", "reward": 0.1, "ratio_max": [1.0, 1.1]},
    {"rollout": 2, "verdict": "no_answer", "extracted": None, "answer": "7", "reward": 0.0, "ratio_max": []},
    {"rollout": 2, "verdict": "wrong", "extracted": "isn't", "answer": "\\frac{1}{2}", "reward": math.nan},
    {"rollout": 3, "verdict": "correct", "extracted": "7", "answer": "7", "reward": 0.5, "reward/no-number": -0.2},
]
Plain = Callable[[dict[str, Any]], bool]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    kind = schema(["no-number"])
    return pa.table([pa.array([row.get(field.name) for row in ROWS], field.type) for field in kind], schema=kind)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("reward < 0.5 and verdict == 'wrong'", lambda row: row["reward"] < 0.5 and row["verdict"] == "wrong"),
        ("reward == 0.1", lambda row: row["reward"] == 0.1),  # a float32 in the column
        ("0.1 <= reward < 1", lambda row: 0.1 <= row["reward"] < 1),
        ("0 > `reward/no-number`", lambda row: row.get("reward/no-number", 0) < 0),
        ("1.5 < rollout", lambda row: row["rollout"] > 1.5),
        ("rollout = 2 or rollout=3", lambda row: row["rollout"] in (2, 3)),
        ("rollout in [1, 3]", lambda row: row["rollout"] in (1, 3)),
        ("rollout in [1.0, 2.5]", lambda row: row["rollout"] in (1.0, 2.5)),
        ("reward in (0.1, 0.5)", lambda row: row["reward"] in (0.1, 0.5)),
        ("verdict not in ['wrong', \"no_answer\"]", lambda row: row["verdict"] == "correct"),
        ("not (verdict == 'wrong' or rollout == 1)", lambda row: row["verdict"] != "wrong" and row["rollout"] != 1),
        ("NOT verdict == 'wrong' AND rollout == 1", lambda row: row["verdict"] != "wrong" and row["rollout"] == 1),
        ("extracted is null", lambda row: row["extracted"] is None),
        ("extracted is not null and rollout > 1", lambda row: row["extracted"] is not None and row["rollout"] > 1),
        ("extracted != '4'", lambda row: row["extracted"] != "4"),  # nothing is not 4
        ("not extracted == '4'", lambda row: row["extracted"] != "4"),
        ("extracted == answer", lambda row: row["extracted"] == row["answer"]),
        (r"extracted == 'isn\'t'", lambda row: row["extracted"] == "isn't"),
        (r"answer contains '\frac'", lambda row: "\\frac" in row["answer"]),
        (r"answer not contains '\frac'", lambda row: "\\frac" not in row["answer"]),
        (r"answer matches '^\d$'", lambda row: re.search(r"^\d$", row["answer"])),
        ("ratio_max > 1.2", lambda row: any(ratio > 1.2 for ratio in row.get("ratio_max") or [])),
        ("not ratio_max > 1.2", lambda row: not any(ratio > 1.2 for ratio in row.get("ratio_max") or [])),
        ("ratio_max is null", lambda row: row.get("ratio_max") is None),
        ("reward != reward", lambda row: math.isnan(row["reward"])),
        ("reward >= -1e3", lambda row: row["reward"] >= -1e3),
        (
            "rollout == 1 or rollout == 2 and verdict == 'wrong'",  # `and` binds first
            lambda row: row["rollout"] == 1 or (row["rollout"] == 2 and row["verdict"] == "wrong"),
        ),
    ],
)
def test_a_filter_chooses_what_python_would(table: pa.Table, text: str, plain: Plain) -> None:
    condition = parse_filter(text)
    condition.check(table.schema)
    wanted = [bool(plain(row)) for row in ROWS]
    assert any(wanted)
    assert not all(wanted)
    for rows in (table, pa.concat_tables([table.slice(0, 2), table.slice(2)])):  # also in pieces
        assert condition.mask(rows).to_pylist() == wanted
    assert set(condition.columns) <= set(re.findall(r"[a-z_/-]+", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must go on with a column, a number or a text in quotes, but it ends"),
        ("reward <", "must go on with a column"),
        ("reward", "must go on with a comparison"),
        ("reward < 0.5 verdict == 'x'", "must have the end, `and` or `or` at character 14, got 'verdict'"),
        ("(reward < 1", "must go on with `)`"),
        ("reward < 1)", "must have the end, `and` or `or` at character 11"),
        ("1 < 2", "must compare a column, got 1 < 2"),
        ("reward ** 2 > 1", "cannot be read from character 8"),
        ("__import__('os').system('true')", "cannot be read from character 17"),
        ("verdict == 'open", "cannot be read from character 12"),
        ("verdict in []", "must have lists of one kind, at least one value"),
        ("verdict in ['a', 1]", "must have lists of one kind"),
        ("verdict in [id]", "must have a number or a text in quotes at character 13, got 'id'"),
        ("verdict contains 3", "must have a text in quotes at character 18"),
        ("verdict not 3", "must have `in`, `contains` or `matches` at character 13"),
        ("verdict matches '('", "`matches` needs a regular expression"),
    ],
)
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rewrad < 1", "`rewrad` is not a column of this ledger; did you mean `reward`"),
        ("verdict < 1", "`verdict` holds texts and cannot be compared with the number 1"),
        ("reward == 'high'", "`reward` holds numbers and cannot be compared with the text 'high'"),
        ("reward == verdict", "`reward` holds numbers and cannot be compared with the text `verdict`"),
        ("reward contains '1'", "`contains` needs a column of texts, got `reward`"),
        ("ratio_max > ratio_min", "`ratio_max` and `ratio_min` cannot be compared: one holds a list"),
        ("rollout in ['a']", "`rollout` holds numbers and cannot be compared with the text 'a'"),
    ],
)
def test_what_a_ledger_cannot_answer(table: pa.Table, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_filter(text).check(table.schema)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("rollout < 99999999999999999999999", 5),
        ("rollout in [1, 99999999999999999999999]", 2),
        ("not " * 3000 + "verdict == 'wrong'", 2),
        ("(" * 99 + "rollout == 1" + ")" * 99, 2),
    ],
)
def test_numbers_and_depths_that_no_ledger_needs(table: pa.Table, text: str, rows: int) -> None:
    assert sum(parse_filter(text).mask(table).to_pylist()) == rows


def test_a_filter_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 100 parentheses"):
        parse_filter("(" * 3000 + "rollout == 1" + ")" * 3000)
