"""Filters in SQL: what they choose, against plain Python, and what they refuse."""

import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.ledger import Ledger, LedgerWriter, query, schema

ROWS: list[dict[str, Any]] = [
    {"rollout": 1, "verdict": "correct", "extracted": "4", "answer": "4", "reward": 1.0, "ratio_max": [1.0, 1.3]},
    {"rollout": 1, "verdict": "wrong", "extracted": "5", "answer": "4", "reward": 0.1, "ratio_max": [1.0, 1.1]},
    {"rollout": 2, "verdict": "no_answer", "extracted": None, "answer": "7", "reward": 0.0, "ratio_max": []},
    {"rollout": 2, "verdict": "wrong", "extracted": "isn't", "answer": "\\frac{1}{2}", "reward": math.nan},
    {"rollout": 3, "verdict": "correct", "extracted": "7", "answer": "7", "reward": 0.5, "reward/no-number": -0.2},
]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder, columns = tmp_path_factory.mktemp("ledger"), schema(["no-number"])
    writer = LedgerWriter(folder, rows_per_file=2)
    for number in (1, 2, 3):
        rows = [row for row in ROWS if row["rollout"] == number]
        arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in columns]
        writer.write(pa.table(arrays, schema=columns))
    return Ledger(folder)


@pytest.mark.parametrize(
    ("where", "plain"),
    [
        ("reward < 0.5 and verdict = 'wrong'", lambda row: row["reward"] < 0.5 and row["verdict"] == "wrong"),
        ("reward == 0.1", lambda row: row["reward"] == 0.1),  # a float32 in the column
        ("REWARD between 0.1 and 0.5", lambda row: 0.1 <= row["reward"] <= 0.5),
        ("reward/no-number < 0", lambda row: row.get("reward/no-number", 0) < 0),
        ("\"reward/no-number\" < 0 or id = 'reward/no-number'", lambda row: row.get("reward/no-number", 0) < 0),
        ("not (verdict = 'wrong' or rollout = 1)", lambda row: row["verdict"] != "wrong" and row["rollout"] != 1),
        ("extracted is distinct from '4'", lambda row: row["extracted"] != "4"),
        ("extracted <> '4'", lambda row: row["extracted"] not in (None, "4")),  # null is neither equal nor different
        ("extracted = 'isn''t'", lambda row: row["extracted"] == "isn't"),
        (r"regexp_matches(answer, '^\d$')", lambda row: re.search(r"^\d$", row["answer"])),
        ("list_max(ratio_max) > 1.2", lambda row: any(ratio > 1.2 for ratio in row.get("ratio_max") or [])),
        ("isnan(reward)", lambda row: math.isnan(row["reward"])),
        ("columns('roll.*') = 2 -- a comment", lambda row: row["rollout"] == 2),
        ("(" * 99 + "rollout = 1" + ")" * 99, lambda row: row["rollout"] == 1),
    ],
)
def test_a_filter_chooses_what_python_would(ledger: Ledger, where: str, plain: Callable[[Any], bool]) -> None:
    wanted = [(row["rollout"], row["verdict"], row["extracted"]) for row in ROWS if plain(row)]
    assert 0 < len(wanted) < len(ROWS)
    tables = ledger.scan(["rollout", "verdict", "extracted"], where)
    assert [tuple(row.values()) for table in tables for row in table.to_pylist()] == wanted
    assert ledger.find(where).num_rows == len(wanted)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "empty"),
        ("reward <", "at its end"),
        ("reward < 0.5 verdict = 'x'", 'syntax error at or near "verdict" at character 14'),
        ("'é' = id verdict", "at character 10"),
        ("rewrad < 1", "unknown column `rewrad`; did you mean `reward`"),
        ('verdict = "wrong"', "a text needs single quotes: 'wrong'"),
        ("reward = 'high'", "'high' to FLOAT at character 1"),
        ("ratio_max > 1.2", "list_max(..)"),
        ("0.2 < reward < 0.8", "Chained comparisons"),
        ("reward < 1, rank", "single SQL expression"),
        ("(select sum(a.range) from range(100000000) a, range(100000000) b) > 0", "a subquery"),
        ("reward in (select 1)", "a subquery"),
        ("not exists (from rows)", "a subquery"),
        ("len(Range(100000000000)) > reward", "the function range"),
        ("case when true then " * 600 + "true" + " end" * 600, "fewer calls within calls"),
        ("id = '\udcff'", "text in UTF-8"),
    ],
)
def test_a_filter_that_cannot_be_used(ledger: Ledger, where: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        ledger.find(where)
    assert "\n" not in str(caught.value)


def test_how_deep_a_filter_may_be_is_the_same_in_every_process(ledger: Ledger) -> None:
    """PyTorch's compiler, for one, raises the limit of recursion."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(InputError, match="fewer calls within calls"):
            ledger.find("case when true then " * 600 + "true" + " end" * 600)
    finally:
        sys.setrecursionlimit(before)
    assert len(ledger.find("case when true then " * 100 + "true" + " end" * 100)) > 0


def test_a_filter_that_takes_too_long_is_ended(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "LIMIT_S", 0.2)
    first, second = "a" * 300_000, "b" * 300_000
    with pytest.raises(InputError, match=r"at most 0\.2 seconds"):  # within one call, which no interruption reaches
        ledger.find(f"levenshtein('{first}', '{second}') > reward")


def test_a_machine_with_many_cores_leaves_a_filter_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 192)
    with query.connect() as connection:
        assert connection.execute("SELECT current_setting('threads')").fetchall() == [(8,)]


def test_a_filter_that_takes_too_much_memory_is_ended(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "LIMIT_BYTES", 3 << 29)
    text = "answer"
    for _ in range(5):
        text = f"replace('{'x' * 999}', 'x', {text} || 'x')"
    with pytest.raises(InputError, match="at most 1536 MiB of memory"):
        ledger.find(f"length({text}) > reward")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_process_is_left_when_a_query_is_given_up(error: type[BaseException]) -> None:
    def children() -> set[str]:
        return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}

    def batches() -> Iterator[pa.RecordBatch]:
        yield from pa.table({"number": range(100_000)}).to_batches(1000)
        assert len(children() - before) == 1
        raise error

    before = children()
    rows = pa.RecordBatchReader.from_batches(pa.schema([("number", pa.int64())]), batches())
    with pytest.raises(error):
        query.select(["number"], rows, "number > 1", ["number"])
    assert children() <= before


@pytest.mark.parametrize(
    "where",
    [
        "1=1); COPY rows TO '{file}'; --",
        "1=1) UNION SELECT 1, 2 FROM rows WHERE (true",
        "true; DROP TABLE rows",
        "(SELECT count(*) FROM read_csv('{secret}')) > 0",
        "EXISTS (FROM '{secret}')",
        "EXISTS (FROM read_text('{secret}'))",
        "EXISTS (FROM glob('/etc/*'))",
        "EXISTS (FROM query('COPY (SELECT 1) TO ''{file}'''))",
        "EXISTS (FROM ROWS_OF_PYTHON)",
        "EXISTS (FROM sniff_csv('{secret}'))",
        "ATTACH '{file}'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "getenv('HOME') <> ''",
        "lpad('a', 2000000000, 'b') = 'x'",
        "list_resize([1], 1000000000) IS NULL",
        "printf('%1000000000d', 1) = ''",
        "bitstring('1', 1000000000) IS NULL",
        "pg_sleep(1000) is null",
    ],
)
def test_a_hostile_filter_reaches_nothing(ledger: Ledger, tmp_path: Path, where: str) -> None:
    ROWS_OF_PYTHON = pa.table({"secret": [1]})  # noqa: F841
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError) as caught:
        ledger.find(where.format(file=tmp_path / "file", secret=tmp_path / "secret.csv"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize(
    "expression",
    [
        "format = 'open'",
        '"range" > 1 and bar < 3',
        "sleep_hours > 3",
        "metadata.format = 'a'",
        "metadata.uuid = '1'",
        "now",
    ],
)
def test_columns_may_have_the_names_of_functions(expression: str) -> None:
    columns = ["format", "range", "bar", "sleep_hours", "metadata", "now"]
    assert query.read_filter(expression, columns, repeatable=True)


@pytest.mark.parametrize("name", ["uuid()", "random()", "current_date", "localtime"])
def test_a_repeatable_filter_has_no_chance_and_no_clock(name: str) -> None:
    expression = f"uuid = {name}"
    assert query.read_filter(expression, ["uuid"])
    with pytest.raises(InputError, match=f"the same rows at any time, without {name.removesuffix('()')}, got"):
        query.read_filter(expression, ["uuid"], repeatable=True)
