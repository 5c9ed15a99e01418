"""The grader as its holders see it: whole batches, copies, settings, and when there are processes."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lightning_pspo.grading import Attempt, Verdict, grade
from lightning_pspo.grading.grader import Grader
from tests.support.processes import gone

ROOT = Path(__file__).resolve().parents[2]
CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG


def processes_of(grader):
    server = psutil.Process(grader._pool._server.process.pid)
    return [server, *server.children(recursive=True)]


PAIRS = [
    ("It is 72", "72"),
    ("#### 71", "72"),
    ("I cannot say", "72"),
    (r"so \boxed{\log 8}", r"3\log 2"),
    (r"so \boxed{\log 9}", r"3\log 2"),
    (r"\boxed{x^2 - 1}", "(x-1)(x+1)"),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}"),
    ("", "1"),
]


@pytest.fixture(scope="module")
def grader():
    with Grader() as grader:
        yield grader


def test_a_batch_is_graded_like_its_members(grader):
    expected = [grade(*pair) for pair in PAIRS]
    assert grader.grade(PAIRS) == expected
    assert grader.grade(PAIRS[::-1] * 3) == expected[::-1] * 3
    assert [one.verdict for one in expected[:3]] == [CORRECT, WRONG, Verdict.NO_ANSWER]
    assert [one.correct for one in expected[3:7]] == [True, False, True, True]
    assert grader.grade([]) == []


def test_strict_mode_is_strict():
    grader = Grader(mode="strict")
    assert [one.verdict for one in grader.grade(PAIRS[:2])] == [Verdict.NO_ANSWER, WRONG]


def test_equivalence_of_answers(grader):
    pairs = [(r"\log 8", r"3\log 2"), ("5", "5.0"), ("5", "6"), (r"\sqrt{2}", r"\sqrt{3}")]
    assert grader.equivalent(pairs) == [True, True, False, False]


def test_no_process_before_the_first_hard_pair_and_none_after_the_grader():
    grader = Grader()
    grader.grade([*PAIRS[:3], Attempt("#### 2.5 + 1.2*3", "6.1", "What is it?")])  # refused without a comparison
    assert grader._pool._server is None
    grader.grade(PAIRS)
    started = processes_of(grader)
    grader.close()
    assert gone(started)
    grader.grade(PAIRS)
    started = processes_of(grader)
    del grader
    gc.collect()
    assert gone(started)


def test_a_copy_has_the_settings_and_no_processes(grader):
    grader.grade(PAIRS)
    source = Grader("strict", workers=3, deadline_s=2.5, memory_mb=600)
    for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert (other.mode, other.workers, other.deadline_s, other.memory_mb) == ("strict", 3, 2.5, 600)
    assert 2 <= Grader().workers <= 8
    assert copy.deepcopy(grader).grade(PAIRS) == grader.grade(PAIRS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mode": "loose"}, "`mode` must be one of lenient, strict, got 'loose'"),
        ({"workers": 0}, "`workers` must be at least 1, got 0"),
        ({"deadline_s": 0.0}, r"`deadline_s` must lie in \(0, 86400\], got 0.0"),
        ({"deadline_s": float("nan")}, r"`deadline_s` must lie in \(0, 86400\], got nan"),
        ({"deadline_s": 1e12}, r"`deadline_s` must lie in \(0, 86400\], got 1000000000000.0"),
        ({"memory_mb": 64}, "`memory_mb` must be at least 128, got 64"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Grader(**setting)


@pytest.mark.parametrize("pair", [("It is 72", None), ("It is 72", 72), (None, "72"), ("It is 72",), ("a", "b", "c")])
def test_pairs_that_are_not_two_texts_are_refused(grader, pair):
    with pytest.raises(ValueError, match="pair 1 must be two texts, or an Attempt, got"):
        grader.grade([("a", "b"), pair])


FORK = """
import os
from lightning_pspo.grading.grader import Grader
pairs = [(r"\\boxed{\\frac{\\log 9}{2}}", r"\\log 3"), (r"\\boxed{\\log 7}", r"\\log 3")]
grader = Grader()
before = grader.grade(pairs)
child = os.fork()
pairs = [(text + " ", answer + " ") for text, answer in pairs]  # nothing that is remembered
if child == 0:
    os._exit(0 if grader.grade(pairs) == before else 1)
assert os.waitpid(child, 0)[1] == 0
assert grader.grade(pairs) == before and [grade.correct for grade in before] == [True, False]
"""


def test_a_forked_process_has_workers_of_its_own(tmp_path):
    subprocess.run([sys.executable, "-c", FORK], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)


LIMITED = """
import resource
from lightning_pspo.grading.grader import Grader
resource.setrlimit(resource.RLIMIT_AS, (900_000 << 10, 900_000 << 10))
with Grader(workers=1, memory_mb=1024) as grader:
    assert grader.equivalent([(r"\\log 8", r"3\\log 2"), (r"\\log 9", r"3\\log 2")]) == [True, False]
"""


def test_workers_start_under_a_lower_limit_of_the_machine():
    subprocess.run([sys.executable, "-c", LIMITED], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
