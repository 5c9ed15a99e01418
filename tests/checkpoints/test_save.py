"""A disk that fills up costs nothing but the time since the last checkpoint, and is told in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_pspo.checkpoints.integrity import check_whole
from lightning_pspo.checkpoints.store import find_checkpoints
from lightning_pspo.cli import export as script
from lightning_pspo.cli.main import main
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.settings import SamplingSettings
from tests.support.checkpoints import saved

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; the checkpoints of the tiny model have about 0.5 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def command(tiny_run: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return a function that gives the arguments of four rollouts."""

    def build(root: Path, *more: str) -> list[str]:
        return [
            "fit",
            *tiny_run(
                root,
                "--data.num_rollouts=4",
                "--model.optimizer.lr=0.01",
                "--trainer.callbacks+=CompletionTable",
                "--trainer.callbacks.every_n_rollouts=1",
                *more,
            ),
        ]

    return build


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes of the disk."""
    path = disk / "ballast"
    stat = os.statvfs(disk)
    path.write_bytes(b"\0" * (stat.f_bavail * stat.f_frsize - left))
    return path


def same_weights(root: Path, whole: Path) -> None:
    here, there = (torch.load(one / "checkpoints/rollout=000004.ckpt", weights_only=True) for one in (root, whole))
    for name, value in there["state_dict"].items():
        assert torch.equal(here["state_dict"][name], value)


def test_while_a_checkpoint_is_written(
    disk: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, whole = disk / "run", tmp_path / "whole"
    main(command(root, "--trainer.limit_train_batches=2"))
    before = {path: path.read_bytes() for path in find_checkpoints(root / "checkpoints")}
    ballast = fill(disk, 316_000)  # half a checkpoint, and something for the settings and the rows of the resumed run
    with pytest.raises(SystemExit) as stop:
        main(command(root, "--ckpt_path=last"))
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    (message,) = (line for line in errors.splitlines() if line.startswith("error: "))
    newest = root / "checkpoints" / "rollout=000002.ckpt"
    pattern = (
        rf"error: The disk is full: .*rollout=000003\.ckpt could .* needs about (\d+) kB; (.*) free\. .* is {newest}\."
    )
    found = re.match(pattern, message)
    assert found, message
    assert abs(int(found[1]) * 1000 - newest.stat().st_size) < 0.2 * newest.stat().st_size
    assert {path: path.read_bytes() for path in (root / "checkpoints").iterdir()} == before
    ballast.unlink()
    main(command(root, "--ckpt_path=last"))
    main(command(whole))
    same_weights(root, whole)
    assert (root / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


@pytest.mark.slow
def test_while_several_ranks_write_a_folder(disk: Path, command: Callable[..., list[str]]) -> None:
    """Ranks tell each other only what torch made of the system's error."""
    root = disk / "run"
    strategy = Path(__file__).parents[2] / "configs/strategy/fsdp.yaml"
    larger = ["--model.policy.model_name_or_path=embedded", "--data.num_rollouts=1", "--trainer.devices=2"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_pspo", *command(root, *larger), f"--config={strategy}"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"^error: The disk is full: .*000001\.ckpt could not .* no earlier checkpoint", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not list((root / "checkpoints").iterdir())


def test_while_something_else_is_written(
    disk: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of the third rollout are cut off; those of the first two are still there."""
    root, whole = disk / "run", tmp_path / "whole"
    main(command(root, "--trainer.limit_train_batches=2"))
    rows = (root / "completions.jsonl").read_bytes()
    ballast = fill(disk, 0)
    with pytest.raises(SystemExit) as stop:
        main(command(root, "--ckpt_path=last", "--trainer.limit_train_batches=4"))
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    assert re.search(r"error: The disk is full: .*--ckpt_path last goes on from .*rollout=000002\.ckpt", errors)
    assert errors.count("error: ") == 1
    assert (root / "completions.jsonl").read_bytes().startswith(rows)
    for path in find_checkpoints(root / "checkpoints"):
        check_whole(path)
    ballast.unlink()
    main(command(root, "--ckpt_path=last"))
    main(command(whole))
    same_weights(root, whole)
    assert (root / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


def test_a_disk_that_cannot_be_written_to(
    disk: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(disk / "run", "--trainer.limit_train_batches=1"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for root, more in ((disk / "other", []), (disk / "run", ["--ckpt_path=last"])):
        with pytest.raises(SystemExit) as stop:
            main(command(root, *more))
        assert stop.value.code == 2
        assert f"must be a folder to write to, got {root}" in capsys.readouterr().err


def test_an_export_that_finds_no_room(
    disk: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It leaves nothing, and says so in one line; a mounted file system itself is refused before any work."""
    module = PSPOModule(policy=Policy(model_name_or_path=str(tiny_model)), sampling=SamplingSettings(max_new_tokens=8))
    module.configure_model()
    path = saved(module, tmp_path / "one.ckpt")
    assert script.main([str(path), str(disk)]) == 2
    assert f"`output` must not be a mounted file system, got {disk}" in capsys.readouterr().err
    ballast = fill(disk, 64 << 10)
    assert script.main([str(path), str(disk / "out")]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(f"error: The disk is full: {disk / 'out'} could not be written; ")
    assert sorted(disk.iterdir()) == [ballast]
    ballast.unlink()
    assert script.main([str(path), str(disk / "out")]) == 0
