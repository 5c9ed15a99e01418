"""The real command in processes of its own, for tests that send signals and break things."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]

SLOW_REWARD = '''
import os, time
from pathlib import Path
from lightning_pspo.rewards import Reward


class Slow(Reward):
    """Even completions are rewarded; takes its time, so that a test can meet it at work, or goes wrong on one rank."""

    def __init__(self, folder: str, seconds: float = 0.3, fails_on: int = -1, what: str = "ValueError", after: int = 1):
        self.folder, self.seconds, self.fails_on, self.what, self.left = folder, seconds, fails_on, what, after

    def __call__(self, samples):
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.left -= 1
        (Path(self.folder) / f"rewarding-{rank}").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        if rank == self.fails_on and self.left < 0:
            if self.what == "stuck":
                import re
                re.match("(a+)+$", "a" * 60 + "b")  # in C, for years, and never letting go of the interpreter
            if self.what == "sleep":
                time.sleep(1000)
            raise ValueError(f"the reward of rank {rank} is broken")
        return [float(len(sample.completion) % 2 == 0) for sample in samples]
'''


def start(arguments: list[str], folder: Path, torchrun: bool = False, **variables: str) -> subprocess.Popen[str]:
    """Start ``python -m lightning_pspo`` in ``folder``, whose modules it may use, in a session of its own."""
    agent = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"] if torchrun else []
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{folder}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *agent, "-m", "lightning_pspo", *arguments],
        cwd=folder,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until ``condition`` holds while the process runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def ended(process: subprocess.Popen[str], seconds: float = 90.0) -> tuple[int, str]:
    """Return status and output of a process that must end by itself within ``seconds``, with all that it started."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == [], output
    return process.returncode, output
