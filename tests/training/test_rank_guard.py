"""One failing rank ends the whole job soon, with the real error first and nothing left behind."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import SLOW_REWARD, ended, start, wait_for

Command = Callable[..., list[str]]
pytestmark = pytest.mark.slow


@pytest.fixture
def command(tiny_run: Command, tmp_path: Path) -> Command:
    """Return a function that gives the arguments of a run on two ranks whose reward can go wrong on one."""
    (tmp_path / "slow_reward.py").write_text(SLOW_REWARD)

    def build(*more: str) -> list[str]:
        return [
            "fit",
            *tiny_run(
                tmp_path / "run",
                "--trainer.callbacks+=Preemption",
                "--trainer.devices=2",
                "--trainer.strategy=ddp",
                "--data.num_rollouts=100",
                "--model.reward=slow_reward.Slow",
                f"--model.reward.folder={tmp_path}",
                *more,
            ),
        ]

    return build


@pytest.mark.parametrize(("rank", "launcher"), [(1, "lightning"), (0, "torchrun")])
def test_an_exception_on_one_rank(command: Command, tmp_path: Path, rank: int, launcher: str) -> None:
    arguments = command(f"--model.reward.fails_on={rank}")
    process = start(arguments, tmp_path, torchrun=launcher == "torchrun")
    wait_for((tmp_path / f"rewarding-{rank}").exists, process)
    status, output = ended(process)
    assert status == 1
    first = output.index("Traceback")
    assert f"ValueError: the reward of rank {rank} is broken" in output[first:]
    assert output.rindex("error on rank", 0, first) < first
    assert output[first:].index("is broken") < output[first:].find("error: rank") % len(output)
    assert "Connection closed" not in output[: output.index("is broken")]


def signalled(arguments: list[str], folder: Path, signum: signal.Signals) -> tuple[int, str, str]:
    """Send a signal to rank 1 of a run; return the run's status and output, and the process of that rank."""
    process = start(arguments, folder)
    other = folder / "rewarding-1"
    wait_for(lambda: other.exists() and other.read_text() != "", process)
    os.kill(int(other.read_text()), signum)
    return *ended(process), other.read_text()


def test_a_killed_rank(command: Command, tmp_path: Path) -> None:
    status, output, pid = signalled(command("--model.reward.seconds=0.1"), tmp_path, signal.SIGKILL)
    assert status == 1
    assert re.search(rf"error: rank 1 \(process {pid}\) was killed by signal 9 \(SIGKILL\)", output)
    assert "Traceback" not in output


def test_an_interrupted_rank(command: Command, tmp_path: Path) -> None:
    status, output, pid = signalled(command("--model.reward.seconds=0.1"), tmp_path, signal.SIGINT)
    assert status == 130
    assert re.search(rf"error: rank 1 \(process {pid}\) ended with status 130", output)


def test_a_rank_that_ends_as_if_all_were_well(command: Command, tmp_path: Path) -> None:
    process = start(command("--model.reward.fails_on=1", "--model.reward.what=exit"), tmp_path)
    status, output = ended(process)
    assert status == 1
    assert re.search(r"error: rank 1 \(process \d+\) ended with status 0; see its own error", output)
    assert "Traceback" not in output


def test_a_rank_killed_while_the_other_is_stuck(command: Command, tmp_path: Path) -> None:
    """Rank one is in C and holds the interpreter: nothing but the kernel can end it with rank zero."""
    more = [
        "--model.reward.fails_on=1",
        "--model.reward.what=stuck",
        "--model.reward.after=0",
        "--model.reward.seconds=0",
    ]
    process = start(command(*more), tmp_path)
    wait_for((tmp_path / "rewarding-1").exists, process)
    os.kill(process.pid, signal.SIGKILL)
    status, _ = ended(process)
    assert status == -signal.SIGKILL
