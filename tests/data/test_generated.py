"""Generated problems are the same in every process."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from lightning_pspo.data.generated import Wanted, drawn, server

TASKS = ("isomorphic_strings", "polynomial_multiplication", "ransom_note", "list_functions")
"""The first three draw from sets, the last from the global generator."""


OTHERS = """
import hashlib, sys
from reasoning_gym.factory import DATASETS
from lightning_pspo.data.generated import HASHED_TASKS, Wanted, drawn
from lightning_pspo.errors import InputError
for task in sorted(DATASETS.keys() - HASHED_TASKS - {"composite"}, reverse=len(sys.argv) > 1):
    try:
        items = drawn(Wanted(task, {}, seed=7, size=3, split=None))
    except InputError:  # without a reference answer, or with fewer questions
        continue
    said = repr([(text, item["answer"]) for text, (_, item) in items.items()])
    print(task, hashlib.sha256(said.encode()).hexdigest())
"""


def test_no_other_task_hangs_on_the_hash_seed():
    """Nor on what was drawn before."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OTHERS, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": str(1 + len(arguments))},
        )
        for arguments in ([], ["reversed"])
    ]
    first, second = (sorted(process.communicate()[0].splitlines()) for process in processes)
    assert first == second
    assert len(first) > 80


def test_a_server_that_has_ended_is_replaced_and_draws_the_same(monkeypatch):
    wanted = [Wanted(task, {}, seed=1, size=20, split=None) for task in TASKS]
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    server.cache_clear()
    first = [drawn(each) for each in wanted]
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    server(os.getpid())._process.kill()
    assert [drawn(each) for each in reversed(wanted)] == first[::-1]


def test_drawing_leaves_the_global_generators_alone():
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    drawn(Wanted("pool_matrix", {}, seed=1, size=2, split=None))
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy[1])  # noqa: NPY002


def test_entries_of_the_module_path_that_import_leaves_out(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, Path.cwd()])
    server.cache_clear()
    assert drawn(Wanted("ransom_note", {}, seed=1, size=2, split=None))
