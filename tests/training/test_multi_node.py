"""Two nodes with one process each: torchrun in two network namespaces where they can be made, SLURM by a stand-in."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_pspo.cli import main as cli
from lightning_pspo.training import rank_guard
from tests.support.loop import assert_same_course
from tests.support.processes import PATIENCE_S, REPOSITORY, free_port

LAUNCH = REPOSITORY / "scripts" / "launch"
SIGNALLED = '''
import os, signal, time
from pathlib import Path
import psutil
from lightning.pytorch import Callback


class SignalOnce(Callback):
    """Has rank one signalled after three rollouts, once: by itself or by its launch file. Notes where ranks begin."""

    def __init__(self, folder: str, to: str = "nobody"):
        self.folder, self.to = Path(folder), to

    def on_train_start(self, trainer, pl_module):
        with (self.folder / f"rank{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.world_size} {trainer.node_rank} {trainer.fit_loop.epoch_loop.total_batch_idx + 1}\\n")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        mark = self.folder / "signalled"
        if self.to == "nobody" or batch_idx != 2 or trainer.global_rank != 1 or mark.exists():
            return
        mark.write_text("")
        agent = psutil.Process().parent()
        os.kill(os.getpid() if self.to == "rank" else agent.ppid(), signal.SIGUSR1)
        (preemption,) = (c for c in trainer.callbacks if type(c).__name__ == "Preemption")
        while preemption._received is None:
            time.sleep(0.01)
'''
SRUN = """#!/usr/bin/env bash
# Stands in for SLURM's: one task on each of two nodes; ends with the largest status.
[[ $1 == --kill-on-bad-exit=1 ]] || exit 99
shift
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
  tasks[task]=$!
done
status=0
for task in 0 1; do
  wait "${tasks[task]}" || { own=$?; [[ $own -gt $status ]] && status=$own; }
done
exit $status
"""
Arguments = Callable[..., list[str]]


@pytest.fixture
def arguments(tiny_run: Arguments, tmp_path: Path) -> Arguments:
    """Return a function that gives the arguments of six rollouts of four updates, preempted by a signal or not."""
    (tmp_path / "signalled.py").write_text(SIGNALLED)

    def build(root: Path, preempted: str = "nobody") -> list[str]:
        return tiny_run(
            root,
            "--trainer.callbacks+=signalled.SignalOnce",
            f"--trainer.callbacks.folder={tmp_path}",
            f"--trainer.callbacks.to={preempted}",
            "--trainer.callbacks+=Preemption",
            "--model.updates_per_rollout=2",
            "--model.minibatches_per_rollout=2",
            "--model.optimizer=SGD",
            "--model.optimizer.lr=0.05",
            "--model.optimizer.momentum=0.9",
            "--data.num_rollouts=6",
        )

    return build


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a new process."""
    return os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{REPOSITORY}:{tmp_path}",
        "HF_HUB_OFFLINE": "1",
    }


def ip(*arguments: str) -> None:
    """Configure the network."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[list[list[str]], dict[str, str], list[dict[str, str]]]]:
    """Yield what to put before a command on each node, common and own variables; namespaces if they can be made."""
    names = [f"pspo{os.getpid()}{letter}" for letter in "ab"]
    links = [f"pv{os.getpid()}{letter}" for letter in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
            for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
                ip("link", "set", link, "netns", name)
                ip("-n", name, "addr", "add", f"10.213.74.{number}/24", "dev", link)
                ip("-n", name, "link", "set", link, "up")
                ip("-n", name, "link", "set", "lo", "up")
                subprocess.run(["ip", "netns", "exec", name, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):  # no `ip`, or not allowed
            yield [[], []], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}, [{}, {}]
        else:
            before = [["ip", "netns", "exec", name] for name in names]
            own = [{"GLOO_SOCKET_IFNAME": link} for link in links]
            yield before, {"MASTER_ADDR": "10.213.74.1", "MASTER_PORT": "29511"}, own
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", links[0]], check=False, capture_output=True)


def on_two_nodes(arguments: list[str], environment: dict[str, str], folder: Path) -> list[tuple[int, str]]:
    """Run the launch file on both nodes; return status and output of each."""
    with two_machines() as (before, common, own):
        nodes = [
            subprocess.Popen(
                [*before[rank], str(LAUNCH / "torchrun.sh"), "fit", *arguments, "--ckpt_path=last"],
                env=environment | common | own[rank] | {"NNODES": "2", "NODE_RANK": str(rank), "NPROC_PER_NODE": "1"},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for rank in range(2)
        ]
        try:
            outputs = [node.communicate(timeout=PATIENCE_S)[0] for node in nodes]
        finally:
            for node in nodes:
                if node.poll() is None:
                    os.killpg(node.pid, signal.SIGKILL)
        return [(node.returncode, output) for node, output in zip(nodes, outputs, strict=True)]


def begun(folder: Path) -> list[list[str]]:
    """Return what each rank noted when it began to train: world size, node, finished rollouts."""
    return [(folder / f"rank{rank}").read_text().splitlines() for rank in range(2)]


@pytest.fixture
def alone(arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of one process."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "signalled", raising=False)
    cli.main(["fit", *arguments(tmp_path / "alone")])
    (tmp_path / "rank0").unlink()
    return tmp_path / "alone"


@pytest.mark.slow
def test_torchrun_on_two_nodes(alone: Path, arguments: Arguments, environment: dict[str, str], tmp_path: Path) -> None:
    """Preempted on the second node after three rollouts, and taken up by the same command."""
    run = arguments(tmp_path / "run", "launcher")
    stopped = on_two_nodes(run, environment, tmp_path)
    assert [status for status, _ in stopped] == [1, 138], stopped  # of torchrun, and of the file that was signalled
    assert "Stopped by SIGUSR1 after rollout 3" in stopped[0][1]
    assert not (tmp_path / "run" / "checkpoints" / "rollout=000004.ckpt").exists()
    for status, output in on_two_nodes(run, environment, tmp_path):
        assert status == 0, output
    assert begun(tmp_path) == [["2 0 0", "2 0 3"], ["2 1 0", "2 1 3"]]
    assert_same_course(alone, tmp_path / "run", 6, atol=2e-5)


@pytest.mark.slow
def test_slurm_requeues_what_it_preempted(
    alone: Path, arguments: Arguments, environment: dict[str, str], tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n'}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    slurm = {
        "PATH": f"{programs}:{environment['PATH']}",
        "SLURM_JOB_ID": str(10000 + os.getpid() % 10000),
        "SLURM_JOB_NAME": "lightning_pspo",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
    }

    def submitted() -> tuple[int, str]:
        done = subprocess.run(
            [str(LAUNCH / "slurm.sbatch"), *arguments(tmp_path / "run", "rank")],
            env=environment | slurm,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return done.returncode, done.stdout + done.stderr

    status, output = submitted()
    assert status == 138, output
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    status, output = submitted()
    assert status == 0, output
    assert len((tmp_path / "scontrol.log").read_text().splitlines()) == 1
    assert begun(tmp_path) == [["2 0 0", "2 0 3"], ["2 1 0", "2 1 3"]]
    assert_same_course(alone, tmp_path / "run", 6, atol=2e-5)


@pytest.mark.parametrize(
    ("file", "variables", "message"),
    [
        ("torchrun.sh", {"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR must be the address of machine 0"),
        ("torchrun.sh", {"NNODES": "2", "MASTER_ADDR": "10.0.0.1"}, "NODE_RANK must be this machine's number"),
        ("torchrun.sh", {"NNODES": "2", "MASTER_ADDR": "10.0.0.1", "NODE_RANK": "2"}, "from 0 to 1, got 2"),
        ("torchrun.sh", {"NNODES": "two"}, "NNODES must be a number, at least 1, got two"),
        ("torchrun.sh", {"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE must be a number, at least 1, got 0"),
        ("slurm.sbatch", {}, "submit this file with sbatch"),
        ("slurm.sbatch", {"SLURM_JOB_ID": "1"}, "sbatch needs --ntasks-per-node"),
    ],
)
def test_a_bad_environment_is_told(file: str, variables: dict[str, str], message: str) -> None:
    bare = {"PATH": os.environ["PATH"], "PYTHON": "false"}  # refused before any Python
    done = subprocess.run([str(LAUNCH / file), "fit"], env=bare | variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


LAUNCHED: dict[str, tuple[dict[str, object], str]] = {
    "torchrun": (
        {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": 4, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0},
        r"TorchElasticEnvironment has started: .*does not match the world size \(4\)",
    ),
    "SLURM": (
        {
            **{"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": 1, "SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 2},
            **{"SLURM_NNODES": 2, "SLURM_PROCID": 0, "SLURM_NODEID": 0, "SLURM_LOCALID": 0},
        },
        "SLURMEnvironment has started: .*`num_nodes=1`",
    ),
}


@pytest.mark.parametrize(
    ("launcher", "devices"), [("torchrun", 1), ("torchrun", 2), ("SLURM", 2)], ids=lambda value: str(value)
)
def test_another_number_of_ranks_than_were_started(
    tiny_run: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
    launcher: str,
    devices: int,
) -> None:
    """With one device each of the four would train alone, all in one folder."""
    variables, message = LAUNCHED[launcher]
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_guard, "follow_launcher", lambda: None)  # this process is pytest's
    more = [f"--trainer.devices={devices}", "--trainer.num_nodes=1"]
    line = refusal(cli.main, ["fit", *tiny_run(tmp_path / "run", *more)])
    assert line.startswith("error: `trainer.devices` and `trainer.num_nodes` must be what ")
    assert re.search(message, line)


@pytest.mark.parametrize("file", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_launch_files(file: Path) -> None:
    """They are well-formed, can be executed, and document every variable that they read."""
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert os.access(file, os.X_OK)
    if file.suffix == ".sbatch":
        lines = file.read_text().splitlines()
        directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
        code = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
        assert directives
        assert max(directives) < code  # sbatch reads none after the first command
        assert "#SBATCH --signal=USR1@300" in lines
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-f", "json", str(file)], capture_output=True, text=True)
        assert json.loads(done.stdout) == []
