"""Killed runs of the real command, resumed until they are done, end with the same bits as a run left alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.cli.main import main

ROLLOUTS = 6
REPOSITORY = Path(__file__).parents[2]
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in, with a home and a place for temporary files of its own."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("cwd", "home", "tmp"):
        (folder / name).mkdir()
    return folder


@pytest.fixture
def command(tiny_run: Callable[..., list[str]]) -> Command:
    """Return a function that gives the command of a run with every kind of state: Adam's moments, warm-up and decay."""

    def build(root: Path, *more: str) -> list[str]:
        arguments = tiny_run(
            root,
            f"--data.num_rollouts={ROLLOUTS}",
            "--model.optimizer.lr=0.01",
            "--model.lr_schedule=Linear",
            "--model.lr_schedule.warmup_updates=5",
            "--model.updates_per_rollout=2",
            "--model.minibatches_per_rollout=2",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=logs",
            "--trainer.logger.flush_logs_every_n_steps=1",
            "--trainer.callbacks+=RewardLogger",
            "--trainer.callbacks+=CompletionTable",
            "--trainer.callbacks.every_n_rollouts=1",
            "--ckpt_path=last",
            *more,
        )
        return [sys.executable, "-m", "lightning_pspo", "fit", *arguments]

    return build


def start(arguments: list[str], workplace: Path) -> subprocess.Popen[str]:
    """Start the command somewhere else than in the repository."""
    environment = os.environ | {
        "HOME": str(workplace / "home"),
        "TMPDIR": str(workplace / "tmp"),
        "MPLCONFIGDIR": str(workplace / "matplotlib"),  # a cache of the library, whoever uses it
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        arguments,
        cwd=workplace / "cwd",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(arguments: list[str], workplace: Path) -> str:
    """Run the command to its end; return what it printed."""
    with start(arguments, workplace) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def kill_when(arguments: list[str], workplace: Path, condition: Callable[[], bool]) -> None:
    """Start the command and kill it, without warning, as soon as ``condition`` holds."""
    with start(arguments, workplace) as process:
        deadline = time.monotonic() + 120
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def checkpoint(root: Path, rollout: int) -> Path:
    return root / "checkpoints" / f"rollout={rollout:06d}.ckpt"


def tensors(value: Any, place: str = "") -> dict[str, Any]:
    """Flatten a part of a checkpoint: place -> tensor or number."""
    if isinstance(value, dict):
        parts = [tensors(part, f"{place}/{name}") for name, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [tensors(part, f"{place}/{index}") for index, part in enumerate(value)]
    else:
        return {place: value}
    return {name: leaf for part in parts for name, leaf in part.items()}


def assert_same_end(root: Path, whole: Path) -> None:
    """Compare weights, optimiser and schedule in the last checkpoints, bit by bit, and what was written down."""
    here, there = (torch.load(checkpoint(run, ROLLOUTS), weights_only=True) for run in (root, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        one, other = tensors(here[part]), tensors(there[part])
        assert one.keys() == other.keys()
        for name, value in one.items():
            equal = torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
            assert equal, f"{part}{name}"
    assert (root / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


def logged_rollouts(root: Path) -> list[list[int]]:
    """Return, for each session that logged, the optimiser steps at which it logged a reward."""
    sessions = sorted((root / "logs").rglob("metrics.csv"), key=lambda path: int(path.parent.name.split("_")[-1]))
    steps = []
    for path in sessions:
        with path.open() as file:
            steps.append([int(row["step"]) for row in csv.DictReader(file) if row.get("train/reward")])
    return steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the run that nobody disturbs; made by the first test that needs it."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def undisturbed(whole: Path, command: Command, workplace: Path) -> Path:
    if not checkpoint(whole, ROLLOUTS).exists():
        finish(command(whole), workplace)
    return whole


def test_an_undisturbed_run_writes_below_its_root_only(undisturbed: Path, workplace: Path) -> None:
    assert [
        path for folder in ("cwd", "home", "tmp") for path in (workplace / folder).rglob("*") if path.is_file()
    ] == []
    rows = [json.loads(line) for line in (undisturbed / "completions.jsonl").read_text().splitlines()]
    assert sorted({row["rollout"] for row in rows}) == list(range(1, ROLLOUTS + 1))
    assert logged_rollouts(undisturbed) == [[4 * rollout for rollout in range(1, ROLLOUTS + 1)]]
    first, last = (torch.load(checkpoint(undisturbed, n), weights_only=True)["state_dict"] for n in (1, ROLLOUTS))
    assert any(not torch.equal(first[name], last[name]) for name in first)  # there was something to learn


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_killed_at_any_moment(
    undisturbed: Path, command: Command, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "run"
    partial = checkpoint(root, 2).with_name(checkpoint(root, 2).name + ".partial")
    # While the second checkpoint is written, or right after it.
    kill_when(command(root), workplace, lambda: partial.exists() or checkpoint(root, 2).exists())
    # In the middle of an iteration: some time after a checkpoint, before the next one.
    seen: list[float] = []

    def midway() -> bool:
        if checkpoint(root, 4).exists() and not seen:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() > seen[0] + 0.02

    kill_when(command(root), workplace, midway)
    caplog.set_level("INFO")
    main(command(root)[3:])
    assert f"Using {root / 'checkpoints'}" in caplog.text
    assert_same_end(root, undisturbed)
    assert list((root / "checkpoints").glob("*.partial")) == []
    for steps in logged_rollouts(root):
        assert len(set(steps)) == len(steps)
    assert (root / "config.yaml").exists()
    assert not (root / "config-2.yaml").exists()


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_leftover_of_a_crashed_save_is_no_checkpoint(undisturbed: Path, command: Command, tmp_path: Path) -> None:
    """Cut short by ``limit_train_batches``, with half a checkpoint and half a line left behind.

    In this process, so that a run is also held against one of another process.
    """
    root = tmp_path / "run"
    main(command(root, "--trainer.limit_train_batches=2")[3:])
    data = checkpoint(root, 2).read_bytes()
    checkpoint(root, 3).with_name(checkpoint(root, 3).name + ".partial").write_bytes(data[: len(data) // 2])
    with (root / "completions.jsonl").open("a") as file:
        file.write('{"rollout": 3, "id": "problems-1", "comple')
    main(command(root)[3:])
    assert_same_end(root, undisturbed)
    assert logged_rollouts(root) == [[4, 8], [12, 16, 20, 24]]
