"""The cache: kept over kills, shared between processes, and harmless where somebody else wrote it."""

import sqlite3

import pytest

from lightning_pspo.judging import JudgementCache

ENDLESS = "r(key) AS (SELECT 1 UNION ALL SELECT key FROM r)"
COLUMNS = "(key TEXT PRIMARY KEY, reply TEXT NOT NULL)"


def test_what_a_killed_process_stored_is_there_for_another(tmp_path):
    path = tmp_path / "new/cache.sqlite"
    JudgementCache(path).put("k", "r")  # never closed
    other = JudgementCache(path)
    other.put("k", "another")
    assert other.get("k") == "r"
    assert len(other) == 1


@pytest.mark.parametrize(
    "statements",
    [
        None,
        ["CREATE TABLE replies (other)"],
        [f"CREATE VIEW replies AS WITH RECURSIVE {ENDLESS} SELECT key, key AS reply FROM r"],
        [f"CREATE TABLE replies {COLUMNS}", "CREATE TRIGGER t AFTER INSERT ON replies BEGIN DELETE FROM replies; END"],
    ],
    ids=["no database", "another table", "an endless view", "a trigger"],
)
def test_a_strangers_file_is_left_alone_with_one_warning(tmp_path, caplog, statements):
    path = tmp_path / "cache.sqlite"
    if statements is None:
        path.write_bytes(b"something else " * 100)
    else:
        with sqlite3.connect(path) as database:
            for statement in statements:
                database.execute(statement)
    before = path.read_bytes()
    cache = JudgementCache(path)
    assert cache.get("k") is None
    cache.put("k", "r")
    assert cache.get("k") == "r"  # in memory
    assert path.read_bytes() == before
    assert caplog.text.count("cannot be used") == 1
    assert str(path) in caplog.text


@pytest.mark.parametrize("broken", ["a folder", "cut", "overwritten", "dropped"])
def test_a_cache_that_breaks_raises_nothing(tmp_path, caplog, broken):
    path = tmp_path / "cache.sqlite"
    if broken == "a folder":
        path.mkdir()
    else:
        cache = JudgementCache(path)
        for number in range(500):
            cache.put(f"k{number}", "r" * 100)
        if broken == "dropped":
            cache._database.execute("DROP TABLE replies")
        cache.close()
        content = path.read_bytes()
        if broken == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif broken == "overwritten":
            path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    cache = JudgementCache(path)
    for number in range(500):
        cache.get(f"k{number}")
    cache.put("new", "r")
    assert caplog.text.count("cannot be used") == (broken != "dropped")


@pytest.mark.parametrize("reply", [b"\x80\x04N.", 7, 1.5, "x" * 200_000])
def test_a_value_of_another_kind_is_no_reply(tmp_path, reply):
    JudgementCache(tmp_path / "cache.sqlite").put("k", "r")
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        database.execute("UPDATE replies SET reply = ?", (reply,))
    assert JudgementCache(tmp_path / "cache.sqlite").get("k") in (None, "7", "1.5")  # TEXT makes texts of numbers
