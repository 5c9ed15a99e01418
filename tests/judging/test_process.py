"""The process in which a judge works: beside the training, with less right to the processor, never without an owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lightning_pspo.judging import Background, Item, JudgementCache, Panel
from lightning_pspo.judging.process import NICENESS
from tests.support.portable_judge import PortableJudge


def started(tmp_path):
    """Return a background whose process has begun on an item that does not end, and that process's id."""
    background = Background(Panel(PortableJudge(str(tmp_path / "where")), JudgementCache(tmp_path / "cache")))
    assert background.submit([Item("0", "q", "wait", "a")]) == []
    return background, where(tmp_path)[0]


def where(tmp_path):
    path = tmp_path / "where"
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    return tuple(int(part) for part in path.read_text().split())


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid):
    end = time.monotonic() + 30.0
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_it_judges_elsewhere_with_less_right_to_the_processor(tmp_path):
    cache = JudgementCache(tmp_path / "cache")
    background = Background(Panel(PortableJudge(str(tmp_path / "where")), cache))
    items = [Item(str(n), "q\ud800", f"c{n}\x00", "a") for n in range(300)]
    assert background.submit(items) == []
    assert background.waiting == 300
    found = background.fetch(wait_s=60.0)
    assert sorted(int(one.id) for one in found) == list(range(300))
    assert {one.scores["clarity"] for one in found} == {4}
    pid, niceness = where(tmp_path)
    assert pid != os.getpid()
    assert niceness == min(19, os.nice(0) + NICENESS)
    assert background.spent() == {"requests": 300.0}
    assert len(cache) == 300  # the copy writes the same file
    assert background.close() == []
    assert background.spent() == {"requests": 300.0}
    assert gone(pid)


def test_an_end_in_the_middle_is_silent(tmp_path, capfd):
    background = Background(Panel(PortableJudge(str(tmp_path / "where")), JudgementCache(tmp_path / "cache")))
    background.submit([Item(str(n), "q", f"c{n}", "a") for n in range(2000)])
    assert background.fetch(wait_s=30.0, enough=1)
    assert len(background.close()) == 1999
    assert capfd.readouterr().err == ""


def test_what_is_under_way_at_the_end_has_a_reason(tmp_path):
    background, pid = started(tmp_path)
    background.submit([Item("1", "q", "c", "a")])
    (done,) = background.fetch(wait_s=30.0, enough=1)
    assert done.id == "1"
    (left,) = background.close("over")
    assert (left.id, left.scores, left.reason) == ("0", None, "over")
    assert gone(pid)


def test_a_process_that_dies_ends_nothing(tmp_path):
    background, pid = started(tmp_path)
    os.kill(pid, signal.SIGKILL)
    (lost,) = background.fetch(wait_s=30.0)
    assert lost.reason == "the judge's process ended by itself, with status -9"
    (refused,) = background.submit([Item("1", "q", "c", "a")])
    assert refused.reason == f"not asked: {lost.reason}"
    assert background.waiting == 0
    assert background.close() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("early", [False, True])
def test_a_signal_to_the_whole_job_is_the_owners_affair(tmp_path, number, early):
    if early:
        background = Background(Panel(PortableJudge(str(tmp_path / "where")), JudgementCache()))
        os.kill(background._worker._process.pid, number)  # while it still imports
    else:
        background, pid = started(tmp_path)
        os.kill(pid, number)
    background.submit([Item("1", "q", "c", "a")])
    assert [one.id for one in background.fetch(wait_s=30.0, enough=1)] == ["1"]
    background.close()


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "a fork of the owner lives on"])
def test_it_ends_with_an_owner_that_is_killed(tmp_path, forked):
    script = f"""
        import os, sys, time
        from tests.judging.test_process import started
        from pathlib import Path
        background, pid = started(Path({str(tmp_path)!r}))
        child = os.fork() if {forked} else 0
        if {forked} and child == 0:
            time.sleep(3600)
        print(child, flush=True)
        time.sleep(3600)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        child = int(owner.stdout.readline())
        pid = where(tmp_path)[0]
        assert alive(pid)
        owner.kill()
        ended = gone(pid)
        if child:
            os.kill(child, signal.SIGKILL)
    assert ended


def test_a_judge_that_cannot_be_copied_works_in_a_thread(tmp_path, caplog):
    class Nested(PortableJudge):
        """Nobody else can import it."""

    background = Background(Panel(Nested(str(tmp_path / "where")), JudgementCache()))
    assert "Nested" in caplog.text
    background.submit([Item("1", "q", "c", "a")])
    (found,) = background.fetch(wait_s=30.0)
    assert found.scores["clarity"] == 4
    assert where(tmp_path)[0] == os.getpid()
    background.close()


def test_what_was_used_for_nothing_is_counted(tmp_path):
    background = Background(Panel(PortableJudge(str(tmp_path / "where")), JudgementCache()))
    background.submit([Item(str(n), "q", f"wait {n}", "a") for n in range(5)])
    where(tmp_path)
    time.sleep(0.5)
    assert len(background.close()) == 5
    assert background.spent() == {"requests": 5.0}
    background.close()  # once more does nothing


def test_a_judge_whose_spending_cannot_be_said_ends_nothing(tmp_path, capfd):
    background = Background(Panel(PortableJudge(str(tmp_path / "where"), broken=True), JudgementCache()))
    background.submit([Item("1", "q", "c", "a")])
    (lost,) = background.fetch(wait_s=30.0)
    assert lost.reason == "the judge's process ended by itself, with status 1"
    assert "ZeroDivisionError" in capfd.readouterr().err
    background.close()
