"""Locks that end with the process that holds them."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo.files import locked, unlock

LOCK_FORK_AND_DIE = """
import os, signal, sys, time
from pathlib import Path
from lightning_pspo.files import locked
assert locked(Path(sys.argv[1])) is not None
child = Path(sys.argv[2])
if os.fork() == 0:
    child.with_suffix(".new").write_text(str(os.getpid()))
    child.with_suffix(".new").rename(child)
    time.sleep(60)
    os._exit(0)
while not child.exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lock_ends_with_its_owner(tmp_path: Path) -> None:
    """Also when a process that was forked from it still lives."""
    path = tmp_path / "lock"
    file = locked(path)
    assert file is not None
    assert locked(path) is None
    unlock(file)
    process = subprocess.Popen([sys.executable, "-c", LOCK_FORK_AND_DIE, str(path), str(tmp_path / "child")])
    assert process.wait(60) == -signal.SIGKILL
    file = locked(path)
    assert file is not None
    unlock(file)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # which fails unless it still lives


NO_LOCKS = """
import errno, fcntl, os, sys
from pathlib import Path
def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
from lightning_pspo.files import locked
assert (locked(Path(sys.argv[1])) is not None) == (sys.argv[2] == "free")
os._exit(0)
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """One process owns a file there, too, and one that has died owns nothing."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def elsewhere(state: str) -> None:
        subprocess.run([sys.executable, "-c", NO_LOCKS, str(path), state], check=True)

    monkeypatch.setattr(fcntl, "flock", flock)
    file = locked(path := tmp_path / "lock")
    assert file is not None
    assert file.write(b"x") == 1
    assert locked(path) is None
    elsewhere("owned")
    unlock(file)
    assert file.closed
    assert list(tmp_path.iterdir()) == [path]
    elsewhere("free")  # which dies without unlocking
    file = locked(path)
    assert file is not None
    unlock(file)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1, "started": 1}', "", "[1]", '{"host": 3}'])
def test_an_owner_of_another_host_is_left_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "lock.owner").write_text(content)
    with pytest.warns(UserWarning, match=r"lock\.owner names the owner, .*: remove it if that has died\."):
        assert locked(tmp_path / "lock") is None
    assert (tmp_path / "lock.owner").read_text() == content


def test_a_job_that_slurm_requeued_on_another_host_owns_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / "lock.owner").write_text('{"host": "elsewhere", "pid": 1, "started": 1, "job": "17"}')
    file = locked(tmp_path / "lock")
    assert file is not None
    unlock(file)
    (tmp_path / "lock.owner").write_text('{"host": "elsewhere", "pid": 1, "started": 1, "job": "18"}')
    with pytest.warns(UserWarning, match="remove it if that has died"):
        assert locked(tmp_path / "lock") is None
    (tmp_path / "lock.owner").write_text(f'{{"host": "{os.uname().nodename}", "pid": 999999999, "started": 1}}')
    (tmp_path / "lock.owner.999999999-1").mkdir()  # of a process that died while it took over
    with pytest.warns(UserWarning, match="remove it if so"):
        assert locked(tmp_path / "lock") is None
