"""Killed runs of the real command, resumed until they are done, end with the same bits as a run left alone."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten

from lightning_pspo.cli.main import main
from lightning_pspo.files import partial_name
from tests.support.processes import REPOSITORY, Command, ended, start, wait_for

ROLLOUTS = 6
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in, with a home and temporary files of its own."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("cwd", "home", "tmp"):
        (folder / name).mkdir()
    return folder


@pytest.fixture
def command(tiny_run: Callable[..., list[str]]) -> Arguments:
    """Return a function that gives a run with every kind of state: Adam's moments, warm-up and decay."""
    settings = [f"--data.num_rollouts={ROLLOUTS}", "--model.optimizer.lr=0.01", "--ckpt_path=last"]
    settings += ["--model.lr_schedule=Linear", "--model.lr_schedule.warmup_updates=5"]
    settings += ["--model.updates_per_rollout=2", "--model.minibatches_per_rollout=2"]
    settings += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    settings += ["--trainer.logger.flush_logs_every_n_steps=1"]
    settings += ["--trainer.callbacks+=CompletionTable", "--trainer.callbacks.every_n_rollouts=1"]
    return lambda root, *more: ["fit", *tiny_run(root, *settings, *more)]


def variables(workplace: Path) -> dict[str, str]:
    """Return what sends a process's home and temporary files into the workplace."""
    folders = {"HOME": "home", "TMPDIR": "tmp", "MPLCONFIGDIR": "matplotlib"}  # the last for a library's cache
    return {name: str(workplace / folder) for name, folder in folders.items()}


def start_in(workplace: Path, arguments: list[str]) -> Command:
    """Start the command somewhere else than in the repository."""
    return start(arguments, workplace / "cwd", **variables(workplace))


def kill_when(arguments: list[str], workplace: Path, condition: Callable[[], bool]) -> None:
    """Start the command and kill it, without warning, as soon as ``condition`` holds."""
    process = start_in(workplace, arguments)
    wait_for(condition, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def checkpoint(root: Path, rollout: int) -> Path:
    return root / "checkpoints" / f"rollout={rollout:06d}.ckpt"


def assert_same_end(root: Path, undisturbed: Path) -> None:
    """Compare weights, optimiser and schedule in the last checkpoints, bit by bit, and what was written down."""
    states = [torch.load(checkpoint(run, ROLLOUTS), weights_only=True) for run in (root, undisturbed)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        (values, structure), (others, expected) = (tree_flatten(state[part]) for state in states)
        assert structure == expected
        for value, other in zip(values, others, strict=True):
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other, part
    assert (root / "completions.jsonl").read_bytes() == (undisturbed / "completions.jsonl").read_bytes()


def logged_rollouts(root: Path) -> list[list[int]]:
    """Return, for each session that logged, the rollouts at which it logged a reward."""
    sessions = sorted((root / "logs").rglob("metrics.csv"), key=lambda path: int(path.parent.name.split("_")[-1]))
    steps = []
    for path in sessions:
        with path.open() as file:
            steps.append([int(row["step"]) for row in csv.DictReader(file) if row.get("train/reward")])
    return steps


@pytest.fixture
def undisturbed(command: Arguments, workplace: Path) -> Path:
    """Root of the run that nobody disturbs; made by the first test that needs it.

    It is a process of its own, not a forked one, so that its imports, too, see where home is.
    """
    root = workplace / "undisturbed"
    if not checkpoint(root, ROLLOUTS).exists():
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables(workplace)
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_pspo", *command(root)],
            cwd=workplace / "cwd",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        status, output = ended(process)
        assert status == 0, output
    return root


def test_an_undisturbed_run_writes_below_its_root_only(undisturbed: Path, workplace: Path) -> None:
    for folder in ("cwd", "home", "tmp"):
        assert not any(path.is_file() for path in (workplace / folder).rglob("*"))
    rows = [json.loads(line) for line in (undisturbed / "completions.jsonl").read_text().splitlines()]
    assert sorted({row["rollout"] for row in rows}) == list(range(1, ROLLOUTS + 1))
    assert logged_rollouts(undisturbed) == [[*range(1, ROLLOUTS + 1)]]
    first, last = (torch.load(checkpoint(undisturbed, n), weights_only=True)["state_dict"] for n in (1, ROLLOUTS))
    assert any(not torch.equal(first[name], last[name]) for name in first)  # there was something to learn


@pytest.mark.slow
def test_killed_at_any_moment(
    undisturbed: Path, command: Arguments, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of a checkpoint that is written in the background."""
    root = tmp_path / "run"
    arguments = command(root, "--callbacks.RolloutCheckpoint.background=true")
    partial = partial_name(checkpoint(root, 2))
    # While the second checkpoint is written, or right after it.
    kill_when(arguments, workplace, lambda: partial.exists() or checkpoint(root, 2).exists())
    # In the middle of an iteration: some time after a checkpoint, before the next one.
    seen: list[float] = []

    def midway() -> bool:
        if checkpoint(root, 4).exists() and not seen:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() > seen[0] + 0.02

    kill_when(arguments, workplace, midway)
    caplog.set_level("INFO")
    main(arguments)
    assert f"Using {root / 'checkpoints'}" in caplog.text
    assert_same_end(root, undisturbed)
    assert list((root / "checkpoints").glob("*.partial")) == []
    for steps in logged_rollouts(root):
        assert len(set(steps)) == len(steps)
    assert (root / "config.yaml").exists()
    assert not (root / "config-2.yaml").exists()


def test_a_leftover_of_a_crashed_save_is_no_checkpoint(undisturbed: Path, command: Arguments, tmp_path: Path) -> None:
    """Cut short by ``limit_train_batches``, with half a checkpoint and half a line left behind.

    In this process, so that a run is also compared with one of another process.
    """
    root = tmp_path / "run"
    main(command(root, "--trainer.limit_train_batches=2"))
    data = checkpoint(root, 2).read_bytes()
    partial_name(checkpoint(root, 3)).write_bytes(data[: len(data) // 2])
    with (root / "completions.jsonl").open("a") as file:
        file.write('{"rollout": 3, "id": "problems-1", "comple')
    main(command(root))
    assert_same_end(root, undisturbed)
    assert logged_rollouts(root) == [[1, 2], [3, 4, 5, 6]]
