"""Reading a ledger: order, counts, sorting, files that are damaged or come from a stranger."""

import importlib
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lightning_pspo.errors import InputError
from lightning_pspo.ledger import Ledger, LedgerWriter, find_ledger
from lightning_pspo.ledger.columns import file_name, find_files
from tests.support.ledger_rows import column, expected_texts, rollout_rows


@pytest.mark.parametrize("rows_per_file", [1, 100])
def test_a_new_reward_term_is_null_before_it(tmp_path: Path, rows_per_file: int) -> None:
    writer = LedgerWriter(tmp_path, rows_per_file=rows_per_file)
    writer.write(rollout_rows(1, 2))
    writer.write(rollout_rows(2, 2, terms=("format",)))
    assert column(tmp_path, "reward/format") == [None, None, 0.5, 0.5]
    assert column(tmp_path, "rollout", "reward/format is null") == [1, 1]


def test_damaged_files_are_named_and_the_others_read(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, rows_per_file=1)
    for number in range(1, 5):
        writer.write(rollout_rows(number))
    files = [path for _, _, path in find_files(tmp_path)]
    files[1].write_bytes(files[1].read_bytes()[:-20])  # its footer is gone
    content = bytearray(files[2].read_bytes())
    content[4:600] = bytes(596)  # its footer is complete, its pages are not
    files[2].write_bytes(content)
    (tmp_path / ".rollout=000009-rank=0.parquet.partial").write_bytes(b"PAR1")  # of a crash
    ledger = Ledger(tmp_path)
    assert list(ledger.damaged) == [files[1]]
    assert column(tmp_path, "completion") == expected_texts({1: 0, 4: 0})
    rows = ledger.find(sort="rollout", descending=True)
    assert ledger.read_sorted(["rollout"], rows)["rollout"].to_pylist() == [4] * 4 + [1] * 4
    assert list(ledger.damaged) == files[1:3]
    again = LedgerWriter(tmp_path, rows_per_file=1)
    again.begin(1, 1)
    assert not list(tmp_path.glob(".*"))
    for number in (2, 3):
        again.write(rollout_rows(number, attempt=1))
    assert column(tmp_path, "completion") == expected_texts({1: 0, 2: 1, 3: 1, 4: 0})
    assert sorted(path.name for path in tmp_path.glob("*.damaged")) == [f"{path.name}.damaged" for path in files[1:3]]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"rollout": ["one"]}), "integers"),
        (pa.table({"rollout": [1], "id": [{"a": 1}]}), "`id` must hold texts, got values of type struct"),
        (pa.table({"rollout": [1], "mine": [[b"x"]]}), "`mine` must hold numbers or texts, got lists of values"),
        (pa.table([[1], ["a"], ["b"]], names=["rollout", "id", "ID"]), "names of their own"),
        (pa.table({"rollout": [1], "reward": ["high"]}), "`reward` must hold numbers, got texts"),
        (pa.table({"verdict": ["wrong"]}), "column `rollout`"),
        (pa.table({"rollout": pa.array([], pa.int64())}), "must have rows"),
        (pa.table({"rollout": pa.array([2**63], pa.uint64())}), "last rollout must be at most"),
        (pa.table({"rollout": [1]} | {f"c{n}": [1] for n in range(999)}), "at most 1000 columns together"),
        (pa.table({"rollout": [1]} | {f"c{n}": [1] for n in range(1000)}), "at most 1000 columns, got 1001"),
    ],
)
def test_files_of_a_stranger(tmp_path: Path, table: pa.Table, reason: str) -> None:
    LedgerWriter(tmp_path).write(rollout_rows(1))
    path = tmp_path / file_name(2, 0)
    parquet.write_table(table, path)
    ledger = Ledger(tmp_path)
    assert reason in ledger.damaged[path]
    assert [table.num_rows for table in ledger.scan(ledger.schema.names)] == [4]


def test_a_text_that_stands_once_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pspo.ledger.reader._MAX_BYTES", 1 << 20)
    texts = pa.array(["x" * 50_000] * 100)
    parquet.write_table(pa.table({"rollout": [1] * 100, "completion": texts}), tmp_path / file_name(1, 0))
    ledger = Ledger(tmp_path)
    assert not list(ledger.scan(["completion"]))
    assert list(ledger.damaged.values()) == ["its columns must have at most 1048576 bytes in memory"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RUN must be the directory of a run with a ledger .*, got .*does not exist"):
        find_ledger(tmp_path / "none")
    with pytest.raises(InputError, match=r"without rollout=\*.parquet in it"):
        find_ledger(tmp_path)
    (tmp_path / "rollout=000001-rank=0.parquet").write_bytes(b"PAR1")
    assert find_ledger(tmp_path) == tmp_path
    with pytest.raises(InputError, match=r"no file of .* can be read: rollout=000001"):
        Ledger(tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Ten rollouts of four rows in several files; advantages 1 to 10, one of them nan and one null."""
    writer = LedgerWriter(tmp_path, rows_per_file=10)
    for number in range(1, 11):
        changes: dict[str, Any] = {"advantage": [math.nan, 3.0, 3.0, None]} if number == 7 else {}
        writer.write(rollout_rows(number, **changes))
    return Ledger(tmp_path)


def test_rollouts_and_counts(ledger: Ledger) -> None:
    tables = ledger.scan(["verdict", "rollout"], "verdict = 'wrong'", (3, 5))
    rows = [row for table in tables for row in table.to_pylist()]
    assert rows == [{"verdict": "wrong", "rollout": number} for number in (3, 3, 4, 4, 5, 5)]
    assert ledger.rollouts == (1, 10)
    assert ledger.rows == ledger.find().num_rows == 40
    assert ledger.find(rollouts=(10, 99)).num_rows == 4
    assert ledger.find(rollouts=(1, 0)).num_rows == 0


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [13, 39])
def test_sorting_is_stable_and_puts_unknown_values_last(ledger: Ledger, limit: int, descending: bool) -> None:
    rows = [row for table in ledger.scan(["advantage", "completion"]) for row in table.to_pylist()]
    known = [row for row in rows if row["advantage"] is not None and row["advantage"] == row["advantage"]]
    unknown = [row for row in rows if row not in known]
    assert len(unknown) == 2
    wanted = sorted(known, key=lambda row: -row["advantage"] if descending else row["advantage"]) + unknown
    rows_found = ledger.find(sort="advantage", descending=descending)
    texts = ledger.read_sorted(["completion"], rows_found.slice(0, limit))["completion"].to_pylist()
    assert texts == [row["completion"] for row in wanted[:limit]]


def test_sorting_by_text_and_by_what_cannot_be_sorted(ledger: Ledger) -> None:
    rows = ledger.find("rollout > 3", sort="id", descending=True).slice(0, 3)
    assert ledger.read_sorted(["id", "rollout"], rows).to_pylist() == [{"id": "p2", "rollout": 5}] * 3
    assert ledger.read_sorted(["id"], ledger.find("rollout > 30", sort="id")).num_rows == 0
    for name, message in (("ratio_max", "holds a list"), ("advantages", "did you mean `advantage`")):
        with pytest.raises(InputError, match=message):
            ledger.find(sort=name)


def test_the_made_up_ledger_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    importlib.import_module("ledger_cost").make(tmp_path, rollouts=20, rows=250)
    made = Ledger(tmp_path)
    assert made.rows == 5000
    assert made.rollouts == (1, 20)
    assert made.find("contains(completion, ' 5249')").num_rows == 1  # each has its number
    assert 0 < made.find("reward < 0.5 and verdict = 'wrong'").num_rows < 5000
