"""Files and folders that exist completely or not at all."""

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import stat
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_pspo.errors import InputError
from lightning_pspo.files import (
    DiskFullError,
    is_full,
    locked,
    new_folder,
    partial_name,
    remove,
    replacing,
    unlock,
    write_atomically,
)
from lightning_pspo.files.atomic import names


def test_a_folder_is_removed_while_its_successor_is_written(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    coming = partial_name(path)
    for folder in (path, coming, partial_name(path.with_name("folder.old"))):  # the last is of a crash
        folder.mkdir()
        (folder / "file").write_text("content")
    remove(path)
    assert sorted(tmp_path.iterdir()) == [coming]
    remove(path)


def test_a_link_in_place_of_a_file_that_is_being_written_is_not_followed(tmp_path: Path) -> None:
    """Nor is a link in place of the file itself, which is replaced."""
    (other := tmp_path / "other").write_text("precious")
    (path := tmp_path / "best.json").symlink_to(other)
    write_atomically(path, b"{}")
    partial_name(path).symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(path, b"[]")
    assert (other.read_text(), path.read_text(), path.is_symlink()) == ("precious", "{}", False)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_force_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is trusted; one that fails is not."""

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if number == errno.EINVAL else pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "best.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == (["best.json"] if number == errno.EINVAL else [])


def test_a_pipe_in_place_of_a_file_that_is_being_written_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(partial_name(path := tmp_path / "best.json"))
    with pytest.raises(OSError, match="No such device"):
        write_atomically(path, b"{}")
    assert not path.exists()


def _make_folder(path: Path) -> None:
    """Start a new folder and die, or wait to be killed."""
    with new_folder(path) as folder:
        (folder / "weights").write_text("half")
        if path.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def test_a_full_disk_is_found_in_a_circle_of_causes() -> None:
    first, second = OSError(errno.EIO, "once"), ValueError("then")
    first.__context__, second.__context__ = second, first
    assert not is_full(first)
    second.__cause__ = OSError(errno.ENOSPC, "no space")
    assert is_full(first)


def test_a_file_for_which_there_is_no_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '\S+/table\.csv'"), replacing(tmp_path / "table.csv"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"text")
    assert not any(tmp_path.iterdir())


def test_two_writers_of_a_file_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with replacing(path) as slow:
        slow.write(b"slow " * 5000)
        with replacing(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow " * 5000
    write_atomically(path, b"new")
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"new", 1)


class Fleeting(type(Path())):  # type: ignore[misc]
    """A path whose file another process removes as soon as it has been looked at."""

    def stat(self, **options: bool) -> os.stat_result:
        result = super().stat(**options)
        if stat.S_ISREG(result.st_mode):
            self.unlink()
        return result


def test_a_file_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert names(Fleeting(tmp_path / "file"), file)
        assert not names(tmp_path / "file", file)
    lock = locked(Fleeting(tmp_path / "lock"))
    assert lock is not None
    unlock(lock)


def test_a_folder_that_is_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "export"
    refused = pytest.raises(InputError, match=r"got \S+/export, into which another process has written meanwhile\.")
    with refused, new_folder(path) as folder:
        (folder / "mine").touch()
        path.mkdir()
        (path / "other").touch()
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))] == ["export", "export/other"]


def test_what_others_have_beside_a_new_folder_stays(tmp_path: Path) -> None:
    """Neither a user's own hidden folder is litter, nor does a link to one, or a circle of them, stop the work."""
    (mine := tmp_path / ".cache.partial").mkdir()
    (mine / "file").write_text("precious")
    (link := tmp_path / ".model.abcdefgh.partial").symlink_to(mine)
    circle = tmp_path / ".model.ijklmnop.partial"
    circle.symlink_to(circle)
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").touch()
    assert sorted(tmp_path.iterdir()) == sorted([mine, link, circle, tmp_path / "model"])
    assert (mine / "file").read_text() == "precious"


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


def test_a_limit_that_safetensors_met_leaves_nothing_and_is_named(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"as large as `ulimit -f`"), new_folder(tmp_path / "model") as folder:
            save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
