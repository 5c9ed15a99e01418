"""Judging beside the caller: a process with less right to the processor that never outlives its owner, or a thread."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lightning_pspo.judging import Background, Item, JudgementCache, Panel
from lightning_pspo.judging.background import NICENESS
from tests.support.faulty_endpoint import GOOD
from tests.support.judging import ITEM, PortableJudge, Scripted, items
from tests.support.processes import PATIENCE_S

WAIT = Item("0", "q", "wait", "a")


def started(folder, *, broken=False, **settings):
    """Return a background whose judge writes to a file in a folder."""
    judge = PortableJudge(Path(folder) / "where", broken=broken)
    return Background(Panel(judge, JudgementCache(Path(folder) / "cache")), **settings)


def where(folder):
    """Return the process and the niceness of the judge, once it has been asked."""
    path = Path(folder) / "where"
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    return tuple(int(part) for part in path.read_text().split())


def ends(pid):
    """Return whether a process ends."""
    stat = Path(f"/proc/{pid}/stat")
    end = time.monotonic() + PATIENCE_S
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    return time.monotonic() < end


def test_it_judges_elsewhere_with_less_right_to_the_processor(tmp_path):
    background = started(tmp_path)
    assert background.submit([Item(str(n), "q\ud800", f"c{n}\x00", "a") for n in range(300)]) == []
    assert background.waiting == 300
    judgements = background.fetch(wait_s=PATIENCE_S)
    assert sorted(int(judgement.id) for judgement in judgements) == list(range(300))
    assert {judgement.scores["clarity"] for judgement in judgements} == {4}
    pid, niceness = where(tmp_path)
    assert pid != os.getpid()
    assert niceness == min(19, os.nice(0) + NICENESS)
    assert len(JudgementCache(tmp_path / "cache")) == 300  # the copy writes the same file
    assert background.close() == background.close() == []
    assert background.spent() == {"requests": 300.0}
    assert ends(pid)


def test_an_end_in_the_middle_is_silent(tmp_path, capfd):
    background = started(tmp_path)
    background.submit(items(2000))
    assert background.fetch(wait_s=PATIENCE_S, limit=1)
    assert len(background.close()) == 1999
    assert capfd.readouterr().err == ""


def test_unfinished_items_have_a_reason_and_their_requests_are_counted(tmp_path):
    background = started(tmp_path)
    background.submit([WAIT, Item("1", "q", "c", "a")])
    (done,) = background.fetch(wait_s=PATIENCE_S, limit=1)
    (left,) = background.close("over")
    assert (done.id, left.id, left.scores, left.reason) == ("1", "0", None, "over")
    assert background.spent() == {"requests": 2.0}
    assert ends(where(tmp_path)[0])


def test_a_process_that_dies_ends_nothing(tmp_path):
    background = started(tmp_path)
    background.submit([WAIT])
    os.kill(where(tmp_path)[0], signal.SIGKILL)
    (lost,) = background.fetch(wait_s=PATIENCE_S)
    assert "status -9" in lost.reason
    (refused,) = background.submit([Item("1", "q", "c", "a")])
    assert refused.reason == f"not asked: {lost.reason}"
    assert background.waiting == 0
    assert background.close() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("early", [False, True])
def test_a_signal_to_the_whole_job_is_the_owners_affair(tmp_path, number, early):
    background = started(tmp_path)
    background.submit([WAIT])
    os.kill(background._worker._process.pid if early else where(tmp_path)[0], number)  # early: while it still imports
    background.submit([Item("1", "q", "c", "a")])
    assert [judgement.id for judgement in background.fetch(wait_s=PATIENCE_S, limit=1)] == ["1"]
    background.close()


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "a fork of the owner lives on"])
def test_it_ends_with_an_owner_that_is_killed(tmp_path, forked):
    script = f"""
        import os, sys, time
        from tests.judging.test_background import WAIT, started, where
        background = started({str(tmp_path)!r})
        background.submit([WAIT])
        where({str(tmp_path)!r})
        child = os.fork() if {forked} else 0
        if {forked} and child == 0:
            time.sleep(3600)
        print(child, flush=True)
        time.sleep(3600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        child = int(owner.stdout.readline())
        owner.kill()
        ended = ends(where(tmp_path)[0])
        if child:
            os.kill(child, signal.SIGKILL)
    assert ended


def test_a_judge_that_cannot_be_copied_works_in_a_thread(tmp_path, caplog):
    class Nested(PortableJudge):
        """Nobody else can import it."""

    background = Background(Panel(Nested(tmp_path / "where"), JudgementCache()))
    assert "Nested" in caplog.text
    background.submit([ITEM])
    (judgement,) = background.fetch(wait_s=PATIENCE_S)
    assert judgement.scores["clarity"] == 4
    assert where(tmp_path)[0] == os.getpid()
    assert background.close() == background.close() == []


def test_a_judge_whose_spending_cannot_be_said_ends_nothing(tmp_path, capfd):
    background = started(tmp_path, broken=True)
    background.submit([ITEM])
    (lost,) = background.fetch(wait_s=PATIENCE_S)
    assert "status 1" in lost.reason
    assert "ZeroDivisionError" in capfd.readouterr().err
    background.close()


def test_more_items_than_may_wait_are_refused(tmp_path):
    judge = Scripted(lambda _: json.dumps(GOOD))
    background = Background(Panel(judge, JudgementCache()), max_pending=3)
    refused = background.submit(items(5))
    assert [judgement.id for judgement in refused] == ["3", "4"]
    assert all("max_pending" in judgement.reason for judgement in refused)
    assert sorted(judgement.id for judgement in background.fetch(wait_s=PATIENCE_S)) == ["0", "1", "2"]
    judge.answer = lambda _: ZeroDivisionError("x")
    background.submit([Item("9", "q", "other", "a")])
    (broken,) = background.fetch(wait_s=PATIENCE_S)
    assert broken.reason == "ZeroDivisionError in the judge"
    assert background.close() == []
