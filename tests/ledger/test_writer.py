"""The ledger on disk: what is written is read back once, whatever happens in between."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lightning_pspo.errors import InputError
from lightning_pspo.ledger import Ledger, LedgerWriter, schema
from lightning_pspo.ledger.columns import find_files
from tests.support.ledger_rows import column, expected_texts, rollout_rows


@pytest.mark.parametrize("rows_per_file", [1, 10, 1000])
def test_everything_comes_back_once_and_in_order(tmp_path: Path, rows_per_file: int) -> None:
    writer = LedgerWriter(tmp_path / "ledger", rows_per_file=rows_per_file)
    writer.begin(0, 1)
    for number in range(1, 8):
        writer.write(rollout_rows(number))
        texts = column(tmp_path / "ledger", "completion")
        assert texts == expected_texts(dict.fromkeys(range(1, number + 1), 0))  # at any moment
    names = [path.name for _, _, path in find_files(tmp_path / "ledger")]
    assert len(names) == {1: 7, 10: 3, 1000: 1}[rows_per_file]  # 4 rows each: full with the third
    assert names[0] == "rollout=000001-rank=0.parquet"
    table = pa.concat_tables([rollout_rows(number) for number in range(1, 8)])
    read = pa.concat_tables(Ledger(tmp_path / "ledger").scan(schema().names))
    assert read.equals(table)
    assert pa.table(parquet.read_table(tmp_path / "ledger").to_pydict(), schema=schema()).equals(table)  # any reader


def test_a_file_is_full_by_its_bytes(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, bytes_per_file=rollout_rows(1).nbytes + 1)
    for number in range(1, 6):
        writer.write(rollout_rows(number))
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
            writer.write(rollout_rows(number, attempt=attempt))
            held[number] = attempt
        assert column(folder, "completion") == expected_texts(dict(sorted(held.items())))
    writer.end(finished + length, 1)
    reached = {number: at for number, at in sorted(held.items()) if number <= finished + length}
    assert column(folder, "completion") == expected_texts(reached)


def test_another_number_of_ranks(tmp_path: Path) -> None:
    """Two ranks reach rollout 5, the checkpoint is of 3, one rank goes on, then three."""
    for rank in (0, 1):
        writer = LedgerWriter(tmp_path, rank=rank, rows_per_file=6)
        writer.begin(0, 2)
        for number in range(1, 6):
            writer.write(rollout_rows(number, 2, rank, 2))
    assert Ledger(tmp_path).rows == 20
    alone = LedgerWriter(tmp_path, rows_per_file=6)
    alone.begin(3, 1)
    assert [key for key in sorted(row_keys(tmp_path)) if key[0] > 3] == []
    for number in range(4, 7):
        alone.write(rollout_rows(number, 4, 0, 1, attempt=1))
    for rank in (0, 1, 2):
        writer = LedgerWriter(tmp_path, rank=rank, rows_per_file=6)
        writer.begin(5, 3)
        writer.write(rollout_rows(6, 1, rank, 3, attempt=2))
    wanted = [(n, rank, row, 0) for n in (1, 2, 3) for rank in (0, 1) for row in (0, 1)]
    wanted += [(n, 0, row, 1) for n in (4, 5) for row in range(4)] + [(6, rank, 0, 2) for rank in range(3)]
    assert row_keys(tmp_path) == wanted  # ranks merged by rollout


def row_keys(folder: Path) -> list[tuple[int, int, int, int]]:
    """Return (rollout, rank, row, attempt) of each row."""
    tables = Ledger(folder).scan(["rollout", "rank", "sample", "completion"])
    rows = [row for table in tables for row in table.to_pylist()]
    return [(row["rollout"], row["rank"], row["sample"], int(row["completion"][-1])) for row in rows]


@pytest.mark.parametrize("name", ["rank", "rows_per_file", "bytes_per_file"])
def test_bad_settings(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` must be at least"):
        LedgerWriter(tmp_path, **{name: -1})
