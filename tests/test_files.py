"""Files that are complete or missing, locks that end with their owner, and plain YAML from strangers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.files import locked, new_folder, parse_yaml, partial_name, read_yaml, remove, unlock

_NAMES = "abcdefghijkl"
LISTS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(_NAMES)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in itertools.pairwise(_NAMES)
)


def test_plain_values() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [1.5, true, null, !!str 7]\n"
    assert parse_yaml(text, "mine") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": [1.5, True, None, "7"]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LISTS, "line 6, column 12: the document may hold at most 100,000 values"),
        (MERGES, "line 6, column 29: the document may hold at most 100,000 values"),
        ("[" * 200_000, "nested at most 100 deep"),
        ("a: &a [*a]", "the anchor `a` contains itself"),
        ("!!python/object/apply:os.system [touch x]", "the tag !!python/object/apply:os.system is not allowed"),
        ("a:\n  b: !!python/name:os.system", "line 2, column 6: the tag !!python/name:os.system"),
        ("a: {b: 1, b: 2}", "the key `b` is repeated, it is first set in line 1"),
        ("a: [", "this is not YAML"),
        ("a\0", "this is not YAML"),
        ("x: " + "1" * 5000, "a value that cannot be read"),
        ("day: 2024-99-99", "a value that cannot be read"),
    ],
)
def test_refused_at_once(text: str, problem: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError) as refusal:
        parse_yaml(text, "mine.yaml")
    assert time.process_time() - start < 2.0
    assert str(refusal.value).startswith("mine.yaml")
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "/dev/zero", "x" * 300, "nul\0", "bytes.yaml", "large.yaml"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.yaml").write_text("# long\n" * 200_000)
    path = tmp_path / name
    with pytest.raises(InputError) as refusal:
        read_yaml(path)
    assert str(refusal.value).startswith(f"{path} ")


def test_a_folder_is_removed_while_its_successor_is_written(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    coming = partial_name(path)
    for folder in (path, coming, partial_name(path.with_name("folder.old"))):  # the last is of a crash
        folder.mkdir()
        (folder / "file").write_text("content")
    remove(path)
    assert sorted(tmp_path.iterdir()) == [coming]
    remove(path)


def _lock_and_fork(path: Path) -> None:
    """Lock a file, fork a process that lives on, and die."""
    assert locked(path) is not None
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_ends_with_its_owner(tmp_path: Path) -> None:
    """Also when a process that was forked from it still lives."""
    path = tmp_path / "lock"
    file = locked(path)
    assert file is not None
    assert locked(path) is None
    unlock(file)
    process = multiprocessing.get_context("spawn").Process(target=_lock_and_fork, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    file = locked(path)
    assert file is not None
    unlock(file)


def _make_folder(path: Path) -> None:
    """Start a new folder and die, or wait to be killed."""
    with new_folder(path) as folder:
        (folder / "weights").write_text("half")
        if path.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def test_what_a_killed_process_left_of_a_new_folder_is_removed(tmp_path: Path) -> None:
    """What a process is still making is left alone."""
    spawn = multiprocessing.get_context("spawn")
    killed, busy = (spawn.Process(target=_make_folder, args=(tmp_path / name,)) for name in ("killed", "busy"))
    killed.start()
    killed.join(60)
    assert [path.name[:8] for path in tmp_path.iterdir()] == [".killed."]
    busy.start()
    while [path.name[:6] for path in tmp_path.iterdir()] != [".busy."]:
        assert busy.is_alive()
        time.sleep(0.01)
    with new_folder(tmp_path / "mine") as folder:
        (folder / "weights").write_text("whole")
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == [".busy.", "mine"]
    busy.kill()
    busy.join(60)
