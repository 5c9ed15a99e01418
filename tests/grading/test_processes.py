"""The grader under hostile pairs: a comparison of our own does, inside the workers, whatever a pair asks for."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pspo.grading import Grade, Verdict, processes
from lightning_pspo.grading import grader as grading_pool
from lightning_pspo.grading import worker as far
from lightning_pspo.grading.grader import Grader
from lightning_pspo.grading.processes import WorkerPool
from tests.support.processes import gone

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = """
import os, re, resource, signal, sys, time

def compare(extracted, answer):
    burnt = time.process_time()
    match extracted:
        case "spin":
            while True:
                pass
        case "hold the lock":  # no other thread of the worker can run
            re.match(r"(a+)+$", "a" * 40 + "b")
        case "burn":
            while time.process_time() < burnt + float(answer):
                pass
        case "sleep":
            time.sleep(float(answer))
        case "fill memory":
            len(bytearray(1 << 33))
        case "exit":
            os._exit(0)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raise":
            raise ValueError
        case "recurse":
            compare_again = lambda: compare_again()
            compare_again()
        case "crash once":
            if not os.path.exists(answer):
                open(answer, "w").close()
                os._exit(1)
            return True
        case "kill the server once":
            if not os.path.exists(answer):
                open(answer, "w").close()
                os.kill(os.getppid(), signal.SIGKILL)
            return True
        case "streams":
            return all(os.path.samestat(os.fstat(stream), os.stat(os.devnull)) for stream in range(3))
        case "modules":
            return not {"torch", "numpy", "lightning", "transformers"} & sys.modules.keys()
    return extracted == answer
"""
VERDICTS = {
    "spin": Verdict.TIMEOUT,
    "hold the lock": Verdict.TIMEOUT,
    "fill memory": Verdict.ERROR,
    "exit": Verdict.ERROR,
    "crash": Verdict.ERROR,
    "raise": Verdict.ERROR,
    "recurse": Verdict.ERROR,
}
CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with the module ``hostile_comparison``, which workers can import."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile_comparison.py").write_text(HOSTILE)
    (folder / "slow_to_import.py").write_text("import time\ntime.sleep(600)")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def pool(hostile):
    pool = WorkerPool(2, deadline_s=0.3, memory_mb=512, compare="hostile_comparison:compare")
    yield pool
    pool.close()


def server_of(pool):
    return psutil.Process(pool._server.process.pid)


def test_hostile_pairs_cost_only_themselves(pool):
    kinds = list(VERDICTS) + ["spin"] * 2
    pairs = [(str(row), str(row + row % 2)) for row in range(400)]
    for place, kind in enumerate(kinds):
        pairs[7 + 29 * place] = (kind, "x")
    verdicts = pool.judge(pairs)
    assert verdicts == [VERDICTS.get(a, CORRECT if a == b else WRONG) for a, b in pairs]


def test_verdicts_do_not_depend_on_what_else_the_machine_does(pool):
    """Eight pairs of 0.1 s side by side, beside two busy processes: each takes far longer than 0.3 s."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        verdicts = pool.judge([("burn", "0.1")] * 8 + [("burn", "60"), ("sleep", "1.5"), ("a", "a")])
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert verdicts == [WRONG] * 8 + [Verdict.TIMEOUT, WRONG, CORRECT]


def test_a_pair_that_sleeps_is_an_error_in_the_end(hostile, monkeypatch, caplog):
    monkeypatch.setattr(processes, "LEAST_BACKSTOP_S", 0.3)
    pool = WorkerPool(1, 0.01, 512, "hostile_comparison:compare")
    assert pool.judge([("sleep", "600"), ("a", "a")]) == [Verdict.ERROR, CORRECT]
    assert "No result after 1 s of wall time" in caplog.text
    pool.close()


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["a", "b", "exit", "raise"]), max_size=40))
def test_every_pair_gets_its_own_verdict_in_order(pool, texts):
    assert pool.judge([(text, "a") for text in texts]) == [
        VERDICTS.get(text, CORRECT if text == "a" else WRONG) for text in texts
    ]


def test_a_worker_that_died_once_is_forgiven(pool, tmp_path):
    assert pool.judge([("crash once", str(tmp_path / "seen")), ("a", "a")]) == [CORRECT, CORRECT]


def test_workers_import_what_they_need_and_no_torch_and_hold_no_stream(pool):
    assert pool.judge([("modules", "x"), ("streams", "x")]) == [CORRECT] * 2


@pytest.mark.parametrize("count", [1, 10])  # both of the workers that were ended are in the way of the one pair
def test_processes_that_someone_else_ended_are_replaced(pool, count):
    pool.judge([("sleep", "0.2")] * 2)
    server = server_of(pool)
    for worker in server.children():
        worker.kill()
        while worker.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert pool.judge([("a", "a")] * count) == [CORRECT] * count
    workers = server.children()
    server.kill()
    assert gone([server, *workers])  # the workers do not outlive it
    assert pool.judge([("a", "b")] * 10) == [WRONG] * 10


def test_an_interrupted_batch_leaves_nothing_behind(pool):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pool.judge([("spin", "x"), ("sleep", "0.9"), *[("a", "a")] * 10])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert pool.judge([("a", "b"), ("c", "c")]) == [WRONG, CORRECT]


def test_threads_take_turns(pool):
    found = {}

    def run(name):
        found[name] = pool.judge([(str(row), name) for row in range(100)] + [("exit", "x")])

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, verdicts in found.items():
        assert verdicts == [CORRECT if row == int(name) else WRONG for row in range(100)] + [Verdict.ERROR]
    assert len(found) == 6


def test_the_reason_why_nothing_starts_is_told(hostile):
    with pytest.raises(RuntimeError, match=r"could not be started.*No module named 'no_such_module'"):
        WorkerPool(1, 1.0, 512, "no_such_module:compare").judge([("a", "b")])
    with pytest.raises(RuntimeError, match="3 workers in a row could not be started: is `memory_mb`="):
        WorkerPool(1, 1.0, 1 << 60, "hostile_comparison:compare").judge([("a", "b")])


def test_the_server_ends_by_itself_while_a_fork_of_the_owner_holds_its_socket(hostile):
    pool = WorkerPool(1, 1.0, 512, "hostile_comparison:compare")
    pool.judge([("a", "a")])
    server = pool._server
    with server.control.dup():  # as in a forked process
        pool.close()
    assert server.process.returncode == 0  # else it was killed, after five seconds in vain


def test_the_end_of_a_server_shows_while_a_fork_of_the_owner_holds_its_socket(hostile, monkeypatch, tmp_path):
    pair, held = socket.socketpair, []

    def socketpair():
        ours, theirs = pair()
        held.append(theirs.dup())  # as by a fork in another thread at this moment
        return ours, theirs

    monkeypatch.setattr(socket, "socketpair", socketpair)
    pool = WorkerPool(1, 1.0, 512, "hostile_comparison:compare")
    assert pool.judge([("kill the server once", str(tmp_path / "seen"))]) == [CORRECT]
    assert len(held) == 2
    pool.close()
    for end in held:
        end.close()


def test_close_ends_the_batches_of_other_threads(hostile):
    pool = WorkerPool(1, 600.0, 512, "hostile_comparison:compare")
    raised = []

    def run():
        with pytest.raises(RuntimeError, match=r"`close` was called before the batch was done: \d+ pairs") as error:
            pool.judge([("a", "a"), ("spin", "x"), ("hold the lock", "x")])
        raised.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]  # the second waits for its turn
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60.0
    while not pool._server or not server_of(pool).children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pool.close()
    for thread in threads:
        thread.join(60.0)
    assert len(raised) == 2
    assert pool._server is None
    assert pool.judge([("a", "a"), ("a", "b")]) == [CORRECT, WRONG]  # as ever after `close`
    pool.close()


@pytest.mark.parametrize("starting", [False, True])
def test_close_in_a_signal_handler_ends_the_batch_that_it_interrupts(hostile, starting):
    pool = WorkerPool(1, 600.0, 512, "slow_to_import:compare" if starting else "hostile_comparison:compare")
    if not starting:
        pool.judge([("a", "a")])
    servers = []

    def close(*_):
        servers.append(pool._server)
        pool.close()

    before = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(RuntimeError, match="`close` was called before the batch was done: 1 pairs"):
            pool.judge([("spin", "x")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert servers[0].process.returncode == (-signal.SIGKILL if starting else 0)
    pool.compare = "hostile_comparison:compare"
    assert pool.judge([("a", "b")]) == [WRONG]
    pool.close()


def test_the_server_hears_workers_beyond_descriptor_1024():
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD, 1030)) as high:
        server = far.Server(theirs, os.getppid(), str.__eq__, 1, far.Limits(0, 0, 0))
        theirs.send(b"+")
        assert server._readable([high]) == [high]


SCRIPT = """
import os, sys, threading
from lightning_pspo.grading.processes import WorkerPool
pool = WorkerPool(2, deadline_s=600.0, memory_mb=512, compare="hostile_comparison:compare")
pool.judge([("a", "a")])
print("started", flush=True)
work = lambda: pool.judge([("hold the lock", "x"), ("sleep", "600")])
work() if sys.argv[1] == "main" else threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("thread", ["main", "other"])
def test_nothing_survives_a_kill_of_the_owner(hostile, tmp_path, thread):
    """Two pairs are stuck side by side.

    The script has no ``__main__`` guard, and a module of the working directory must not get in the way.
    """
    (tmp_path / "json.py").write_text("raise SystemExit('this is not the standard library')")
    script = hostile / "owner.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(hostile)])}
    command = [sys.executable, str(script), thread]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 60.0
        while len(children := psutil.Process(owner.pid).children(recursive=True)) < 3:  # the server, one for each pair
            assert time.monotonic() < deadline
            time.sleep(0.05)
        owner.kill()
        owner.wait()
        assert gone(children)


def test_what_is_undecided_is_neither_true_nor_false(hostile, monkeypatch):
    monkeypatch.setattr(grading_pool, "quick", lambda extracted, answer: None)
    grader = Grader(deadline_s=0.5)
    grader._pool.compare = "hostile_comparison:compare"
    assert grader.equivalent([("spin", "x"), ("exit", "x"), ("x", "x")]) == [None, None, True]
    hostile_pair = (r"Thus \boxed{spin}.", "x")
    assert grader.grade([hostile_pair] * 40) == [Grade(Verdict.TIMEOUT, "spin", "boxed")] * 40
    grader.close()


def test_a_settled_pair_is_compared_once_in_several_calls(hostile, monkeypatch, tmp_path):
    monkeypatch.setattr(grading_pool, "quick", lambda extracted, answer: None)
    monkeypatch.setattr(grading_pool, "_REMEMBERED", 3)
    grader = Grader(workers=1, deadline_s=0.2)
    grader._pool.compare = "hostile_comparison:compare"
    calls, judge = [], grader._pool.judge
    monkeypatch.setattr(grader._pool, "judge", lambda pairs: calls.append([left for left, _ in pairs]) or judge(pairs))
    for extracted in ("spin", "exit", "a", "x", "spin", "exit", "b", "a", "spin"):
        verdict = grader.equivalent([(extracted, "x"), (extracted, "x")])
        assert verdict == [{"spin": None, "exit": None, "x": True}.get(extracted, False)] * 2
    # an error is tried again; "b" was one pair too many, and the oldest is forgotten
    assert calls == [[extracted] for extracted in ("spin", "exit", "a", "x", "exit", "b", "spin")]
    grader.close()
