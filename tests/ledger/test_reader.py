"""The ledger on disk: what is written is read back once, whatever happens in between."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lightning_pspo.ledger import Ledger, LedgerWriter, find_ledger, parse_filter, schema
from lightning_pspo.ledger.columns import find_files
from lightning_pspo.ledger.view import visible


def rollout(number: int, rows: int = 4, rank: int = 0, world_size: int = 1, **columns: Any) -> pa.Table:
    """Return made-up rows; the completion tells which, and from which attempt if that is given."""
    kind = schema(columns.pop("terms", ()))
    attempt = columns.pop("attempt", 0)
    plain: dict[str, Any] = {
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
    }
    lists = {field.name: [[1.0, 1.0 + row] if row else [] for row in range(rows)] for field in kind}
    values = lists | {name: [0.5] * rows for name in kind.names if name.startswith("reward/")} | plain | columns
    return pa.table([pa.array(values[field.name], field.type) for field in kind], schema=kind)


def texts(folder: Path) -> list[str]:
    """Return all completions, in the order in which the ledger gives them."""
    tables = [table["completion"].to_pylist() for table in Ledger(folder).scan(["completion"])]
    return [text for table in tables for text in table]


def expected(attempts: dict[int, int], rows: int = 4) -> list[str]:
    return [f"rollout {n} row {row} attempt {attempt}" for n, attempt in attempts.items() for row in range(rows)]


@pytest.mark.parametrize("rows_per_file", [1, 10, 1000])
def test_everything_comes_back_once_and_in_order(tmp_path: Path, rows_per_file: int) -> None:
    writer = LedgerWriter(tmp_path / "ledger", rows_per_file=rows_per_file)
    writer.begin(0, 1)
    for number in range(1, 8):
        writer.write(rollout(number))
        assert texts(tmp_path / "ledger") == expected(dict.fromkeys(range(1, number + 1), 0))  # at any moment
    names = [path.name for _, _, path in find_files(tmp_path / "ledger")]
    assert len(names) == {1: 7, 10: 3, 1000: 1}[rows_per_file]  # 4 rows each: full with the third
    assert names[0] == "rollout=000001-rank=0.parquet"
    (whole,) = [pa.concat_tables([rollout(number) for number in range(1, 8)])]
    read = pa.concat_tables(Ledger(tmp_path / "ledger").scan(schema().names))
    assert read.equals(whole)
    assert pa.table(parquet.read_table(tmp_path / "ledger").to_pydict(), schema=schema()).equals(whole)  # any reader


def test_a_file_is_full_by_its_bytes(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, bytes_per_file=rollout(1).nbytes + 1)
    for number in range(1, 6):
        writer.write(rollout(number))
    assert [first for first, _, _ in find_files(tmp_path)] == [1, 3, 5]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=1, max_size=6), st.sampled_from([1, 9, 100]))
def test_resumed_runs(tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[int, int]], full: int) -> None:
    """Each life goes on from a checkpoint that the lives before it reached, and is killed some rollouts later."""
    folder = tmp_path_factory.mktemp("ledger")
    held: dict[int, int] = {}
    for attempt, (checkpoint, length) in enumerate(lives):
        finished = min(checkpoint, max(held, default=0))
        writer = LedgerWriter(folder, rows_per_file=full)
        writer.begin(finished, 1)
        for number in range(finished + 1, finished + length + 1):
            writer.write(rollout(number, attempt=attempt))
            held[number] = attempt
            assert texts(folder) == expected(dict(sorted(held.items())))
    writer.end(finished + length, 1)
    assert texts(folder) == expected({n: at for n, at in sorted(held.items()) if n <= finished + length})


def test_another_number_of_ranks(tmp_path: Path) -> None:
    """Two ranks reach rollout 5, the checkpoint is of 3, one rank goes on, then three."""
    for rank in (0, 1):
        writer = LedgerWriter(tmp_path, rank, rows_per_file=6)
        writer.begin(0, 2)
        for number in range(1, 6):
            writer.write(rollout(number, 2, rank, 2))
    assert Ledger(tmp_path).rows == 20
    alone = LedgerWriter(tmp_path, 0, rows_per_file=6)
    alone.begin(3, 1)
    assert [key for key in sorted(found(tmp_path)) if key[0] > 3] == []
    for number in range(4, 7):
        alone.write(rollout(number, 4, 0, 1, attempt=1))
    for rank in (0, 1, 2):
        writer = LedgerWriter(tmp_path, rank, rows_per_file=6)
        writer.begin(5, 3)
        writer.write(rollout(6, 1, rank, 3, attempt=2))
    wanted = [(n, rank, row, 0) for n in (1, 2, 3) for rank in (0, 1) for row in (0, 1)]
    wanted += [(n, 0, row, 1) for n in (4, 5) for row in range(4)] + [(6, rank, 0, 2) for rank in range(3)]
    assert found(tmp_path) == wanted  # ranks merged by rollout


def found(folder: Path) -> list[tuple[int, int, int, int]]:
    """Return (rollout, rank, row, attempt) of each row."""
    tables = Ledger(folder).scan(["rollout", "rank", "sample", "completion"])
    rows = [row for table in tables for row in table.to_pylist()]
    return [(row["rollout"], row["rank"], row["sample"], int(row["completion"][-1])) for row in rows]


def test_a_new_reward_term_is_null_before_it(tmp_path: Path) -> None:
    for rows_per_file in (1, 100):
        folder = tmp_path / str(rows_per_file)
        writer = LedgerWriter(folder, rows_per_file=rows_per_file)
        writer.write(rollout(1, 2))
        writer.write(rollout(2, 2, terms=["format"]))
        ledger = Ledger(folder)
        values = [value for table in ledger.scan(["reward/format"]) for value in table["reward/format"].to_pylist()]
        assert values == [None, None, 0.5, 0.5]
        assert ledger.count(parse_filter("reward/format is null")) == 2


def test_damaged_files_are_named_and_the_others_read(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, rows_per_file=1)
    for number in range(1, 5):
        writer.write(rollout(number))
    files = [path for _, _, path in find_files(tmp_path)]
    files[1].write_bytes(files[1].read_bytes()[:-20])  # its footer is gone
    whole = bytearray(files[2].read_bytes())
    whole[4:600] = bytes(596)  # its footer is whole
    files[2].write_bytes(whole)
    (tmp_path / ".rollout=000009-rank=0.parquet.partial").write_bytes(b"PAR1")  # of a crash
    ledger = Ledger(tmp_path)
    assert list(ledger.damaged) == [files[1]]
    rows = [text for table in ledger.scan(schema().names) for text in table["completion"].to_pylist()]
    assert rows == expected({1: 0, 4: 0})
    assert list(ledger.damaged) == files[1:3]
    again = LedgerWriter(tmp_path, rows_per_file=1)
    again.begin(1, 1)
    assert not list(tmp_path.glob(".*"))
    for number in (2, 3):
        again.write(rollout(number, attempt=1))
    assert texts(tmp_path) == expected({1: 0, 2: 1, 3: 1, 4: 0})
    assert sorted(path.name for path in tmp_path.glob("*.damaged")) == [f"{path.name}.damaged" for path in files[1:3]]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be the directory of a run with a ledger, got .*does not exist"):
        find_ledger(tmp_path / "none")
    with pytest.raises(ValueError, match=r"there is no rollout=\*.parquet in it"):
        find_ledger(tmp_path)
    (tmp_path / "rollout=000001-rank=0.parquet").write_bytes(b"PAR1")
    assert find_ledger(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="must have a file that can be read, got none: rollout=000001"):
        Ledger(tmp_path)


@pytest.mark.parametrize("name", ["rank", "rows_per_file", "bytes_per_file"])
def test_bad_settings(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        LedgerWriter(tmp_path, **{name: -1})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Ten rollouts of four rows in several files; advantages 1 to 10, one of them nan."""
    writer = LedgerWriter(tmp_path, rows_per_file=10)
    for number in range(1, 11):
        changes: dict[str, Any] = {"advantage": [float("nan"), 3.0, 3.0, None]} if number == 7 else {}
        writer.write(rollout(number, **changes))
    return Ledger(tmp_path)


def test_rollouts_and_counts(ledger: Ledger) -> None:
    where = parse_filter("verdict == 'wrong'")
    assert ledger.rollouts == (1, 10)
    for _ in range(2):  # the second time from what counting keeps in mind
        tables = list(ledger.scan(["verdict", "rollout"], where, (3, 5)))
        rows = [(row["verdict"], row["rollout"]) for table in tables for row in table.to_pylist()]
        assert rows == [("wrong", number) for number in (3, 3, 4, 4, 5, 5)]
        assert ledger.count(where, (3, 5)) == 6
    assert ledger.count() == 40
    assert ledger.count(None, (10, 99)) == 4
    numbers = [(number, table.num_rows) for number, table in ledger.by_rollout(["id"], rollouts=(2, 4))]
    assert numbers == [(2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 5, 13, 38, 39, 40, 100])
def test_top_is_a_stable_sort(ledger: Ledger, limit: int, descending: bool) -> None:
    rows = [row for table in ledger.scan(["advantage", "completion"]) for row in table.to_pylist()]
    known = [row for row in rows if row["advantage"] is not None and row["advantage"] == row["advantage"]]
    unknown = [row for row in rows if row not in known]
    assert len(unknown) == 2
    wanted = sorted(known, key=lambda row: -row["advantage"] if descending else row["advantage"]) + unknown
    top = ledger.top(["completion"], "advantage", limit, descending)
    assert [text for table in top for text in table["completion"].to_pylist()] == [
        row["completion"] for row in wanted[:limit]
    ]


def test_top_of_texts_and_of_some(ledger: Ledger) -> None:
    top = ledger.top(["id", "rollout"], "id", 3, True, parse_filter("rollout > 3"))
    assert [row for table in top for row in table.to_pylist()] == [{"id": "p2", "rollout": 5}] * 3
    assert ledger.top(["id"], "id", 3, where=parse_filter("rollout > 30")) == []
    with pytest.raises(ValueError, match="cannot be sorted by `ratio_max`, which holds a list"):
        ledger.top(["id"], "ratio_max", 3)
    with pytest.raises(ValueError, match="`advantages` is not a column of this ledger; did you mean `advantage`"):
        ledger.top(["id"], "advantages", 3)


def test_the_made_up_ledger_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    importlib.import_module("ledger_cost").make(tmp_path, rollouts=20, rows=250)
    made = Ledger(tmp_path)
    assert made.rows == 5000
    assert made.rollouts == (1, 20)
    assert made.count(parse_filter("completion contains ' 5249'")) == 1  # each has its number
    assert 0 < made.count(parse_filter("reward < 0.5 and verdict == 'wrong'")) < 5000


def test_it_starts_without_torch() -> None:
    check = (
        "import sys, lightning_pspo.ledger, lightning_pspo.ledger.compare, lightning_pspo.ledger.regrade, "
        "lightning_pspo.ledger.view; sys.exit(' '.join({'torch', 'lightning', 'pandas'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(st.text())
def test_no_text_steers_a_terminal(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert visible(text, lines=True).count("\n") == text.count("\n")
    if text.isprintable():
        assert shown == text
