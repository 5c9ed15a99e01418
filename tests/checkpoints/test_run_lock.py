"""One run owns a folder: a second start is refused and told by whom, and a dead process owns nothing."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.checkpoints.run_lock import LOCK, owned
from lightning_pspo.checkpoints.store import find_checkpoints
from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from tests.support.processes import ended, start, wait_for


def test_the_owner_is_named(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "mine"
    with owned(root):
        pattern = (
            rf"got {root}: process {os.getpid()} on \S+, running since \d{{4}}-.*, is using it\. .*another directory"
        )
        with pytest.raises(InputError, match=pattern), owned(root):
            pass
        (root / LOCK).write_bytes(b"")
        with pytest.raises(InputError, match="another process is using it"), owned(root):
            pass
    assert not (tmp_path / "runs").exists(), "nothing was written but the lock"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a folder that can be made, got .*xxx: File name too long"):
        owned(tmp_path / ("x" * 300)).__enter__()


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to(path.with_name("other"))], ids=["pipe", "link"]
)
def test_what_is_not_a_file_is_neither_waited_for_nor_followed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """In a folder of somebody else's a link may lead to any file of the user's."""
    (tmp_path / "other").write_text("precious")
    make(tmp_path / LOCK)
    with pytest.raises(InputError, match=r"run\.lock` must be a file that can be locked: .*; remove it"):
        owned(tmp_path).__enter__()
    assert (tmp_path / "other").read_text() == "precious"


def test_what_a_dead_owner_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"host": "gone", "pid": 1, "since": "2020-01-01 00:00:00+00:00", "more": "text"}')
    with owned(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()
        assert "gone" not in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--ckpt_path=last"]], ids=["fresh", "resumed"])
def test_a_second_start_is_refused_before_anything_is_written(
    tiny_run: Callable[..., list[str]], tmp_path: Path, refusal: Callable[..., str], more: list[str]
) -> None:
    root = tmp_path / "run"
    with owned(root):
        before = sorted(root.iterdir())
        assert "must belong to one run at a time" in refusal(main, ["fit", *tiny_run(root), *more])
        assert sorted(root.iterdir()) == before
        main(["fit", *tiny_run(root), "--trainer.fast_dev_run=1"])  # it writes nothing
    main(["fit", *tiny_run(root), *more, "--data.num_rollouts=1"])
    assert not (root / LOCK).exists()


def test_a_refused_run_leaves_nothing(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *tiny_run(tmp_path / "run"), "--model.group_size=1"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_is_no_owner(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """While it lives, a second one is refused; right after SIGKILL, with its lock file left behind, it goes on."""
    root = tmp_path / "run"
    arguments = ["fit", *tiny_run(root, "--data.num_rollouts=400"), "--ckpt_path=last"]
    first = start(arguments, tmp_path)
    wait_for(lambda: bool(find_checkpoints(root / "checkpoints")), first)
    status, output = ended(start(arguments, tmp_path))
    assert status == 2
    assert re.search(rf"process {first.pid} on .* is using it", output)
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (root / LOCK).exists()
    second = start(arguments, tmp_path)
    newest = find_checkpoints(root / "checkpoints")[-1]
    wait_for(lambda: find_checkpoints(root / "checkpoints")[-1] != newest, second)
    second.send_signal(signal.SIGKILL)
    second.communicate()
