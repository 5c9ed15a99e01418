"""A disk that fills up costs nothing but the time since the last checkpoint, and is reported in one line."""

import os
import re
import resource
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.checkpoints.integrity import check_whole
from lightning_pspo.checkpoints.save import DirectIO, on_the_host
from lightning_pspo.checkpoints.store import find_checkpoints
from lightning_pspo.cli import export as script
from lightning_pspo.cli.main import main
from tests.support.checkpoints import module_of, same_weights, saved
from tests.support.processes import ended, start

Command = Callable[..., list[str]]
Refusal = Callable[..., str]
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
def command(tiny_run: Command) -> Command:
    """Return a function that gives the arguments of four rollouts."""
    settings = ["--data.num_rollouts=4", "--model.optimizer.lr=0.01"]
    settings += ["--trainer.callbacks+=CompletionTable", "--trainer.callbacks.every_n_rollouts=1"]
    return lambda root, *more: ["fit", *tiny_run(root, *settings, *more)]


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes of the disk."""
    path = disk / "ballast"
    stat = os.statvfs(disk)
    path.write_bytes(b"\0" * (stat.f_bavail * stat.f_frsize - left))
    return path


def check_resumed(command: Command, root: Path, undisturbed: Path) -> None:
    """Once there is room again, the run ends as one that nobody disturbed."""
    main(command(root, "--ckpt_path=last"))
    main(command(undisturbed))
    assert same_weights(root, undisturbed, 4)
    assert (root / "completions.jsonl").read_bytes() == (undisturbed / "completions.jsonl").read_bytes()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_keeps_ties_and_what_the_checkpoint_was(tmp_path: Path, device: str) -> None:
    """Later changes do not reach it, and no weight is written twice."""
    weight, ones = torch.arange(6.0, device=device).view(2, 3), torch.ones(2, 3, device=device)
    state = OrderedDict(embedding=weight, head=weight.detach(), transposed=ones.T, count=torch.tensor(3))
    loops: dict[str, Any] = {"rows": [1, (2, 3)]}
    checkpoint = {"state_dict": state, "loops": loops}
    copied = on_the_host(checkpoint)
    weight.zero_()
    loops["rows"].append(4)
    DirectIO().save_checkpoint(copied, tmp_path / "copied")
    written = torch.load(tmp_path / "copied", weights_only=True)
    assert written["loops"] == {"rows": [1, (2, 3)]}
    assert {name: value.tolist() for name, value in written["state_dict"].items()} == {
        "embedding": [[0, 1, 2], [3, 4, 5]],
        "head": [[0, 1, 2], [3, 4, 5]],
        "transposed": [[1, 1]] * 3,
        "count": 3,
    }
    assert written["state_dict"]["embedding"].data_ptr() == written["state_dict"]["head"].data_ptr()


@pytest.mark.parametrize("background", [False, True])
def test_while_a_checkpoint_is_written(
    disk: Path, command: Command, tmp_path: Path, refusal: Refusal, background: bool
) -> None:
    root, plain = disk / "run", command

    def command(root: Path, *more: str) -> list[str]:
        return plain(root, f"--callbacks.RolloutCheckpoint.background={background}", *more)

    main(command(root, "--trainer.limit_train_batches=2"))
    before = {path: path.read_bytes() for path in find_checkpoints(root / "checkpoints")}
    ballast = fill(disk, 316_000)  # half a checkpoint, and something for the settings and the rows of the resumed run
    message = refusal(main, command(root, "--ckpt_path=last"), 1)
    newest = root / "checkpoints" / "rollout=000002.ckpt"
    pattern = (
        rf"error: The disk is full: .*rollout=000003\.ckpt could .* needs about (\d+) kB; (.*) free\. .* is {newest}\."
    )
    match = re.match(pattern, message)
    assert match, message
    assert abs(int(match[1]) * 1000 - newest.stat().st_size) < 0.2 * newest.stat().st_size
    assert {path: path.read_bytes() for path in (root / "checkpoints").iterdir()} == before
    ballast.unlink()
    check_resumed(command, root, tmp_path / "undisturbed")


@pytest.mark.slow
def test_while_several_ranks_write_a_folder(disk: Path, command: Command, tmp_path: Path) -> None:
    """Ranks tell each other only what torch made of the system's error."""
    root = disk / "run"
    strategy = Path(__file__).parents[2] / "configs/strategy/fsdp.yaml"
    larger = ["--model.policy.model_name_or_path=embedded", "--data.num_rollouts=1", "--trainer.devices=2"]
    arguments = command(root, *larger, f"--config={strategy}")
    status, output = ended(start(arguments, tmp_path, CUDA_VISIBLE_DEVICES=""))
    assert status == 1
    assert re.search(r"^error: The disk is full: .*000001\.ckpt could not .* no earlier checkpoint", output, re.M)
    assert "Traceback" not in output
    assert output.count("error: ") == 1
    assert not list((root / "checkpoints").iterdir())


def test_while_something_else_is_written(disk: Path, command: Command, tmp_path: Path, refusal: Refusal) -> None:
    """The rows of the third rollout are cut off; those of the first two are still there."""
    root = disk / "run"
    main(command(root, "--trainer.limit_train_batches=2"))
    rows = (root / "completions.jsonl").read_bytes()
    ballast = fill(disk, 0)
    message = refusal(main, command(root, "--ckpt_path=last", "--trainer.limit_train_batches=4"), 1)
    assert re.match(r"error: The disk is full: .*--ckpt_path last goes on from .*rollout=000002\.ckpt", message)
    assert (root / "completions.jsonl").read_bytes().startswith(rows)
    for path in find_checkpoints(root / "checkpoints"):
        check_whole(path)
    ballast.unlink()
    check_resumed(command, root, tmp_path / "undisturbed")


def test_while_completions_are_written(disk: Path, command: Command, problem_file: Path, refusal: Refusal) -> None:
    """The checkpoints are not what an evaluation goes on from."""
    source = ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.overlap=warn"]
    _, *arguments = command(disk / "run", *source)
    ballast = fill(disk, 0)
    message = refusal(main, ["validate", *arguments], 1)
    assert re.match(r"error: The disk is full: .* Free some space; give the same command again\.", message)
    ballast.unlink()
    main(["validate", *arguments])


def test_a_limit_on_the_size_of_files(command: Command, tmp_path: Path, refusal: Refusal) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        message = refusal(main, command(tmp_path / "run"), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.match(
        r"error: A file is as large as `ulimit -f` .* lets it be: .*rollout=000001\.ckpt could not", message
    )
    assert "Raise the limit, then" in message


def test_a_disk_that_cannot_be_written_to(disk: Path, command: Command, refusal: Refusal) -> None:
    main(command(disk / "run", "--trainer.limit_train_batches=1"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for root, more in ((disk / "other", []), (disk / "run", ["--ckpt_path=last"])):
        assert f"must be a folder to write to, got {root}" in refusal(main, command(root, *more))


def test_an_export_that_finds_no_room(
    disk: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It leaves nothing, and says so in one line; a mounted file system itself is refused before any work."""
    path = saved(module_of(tiny_model), tmp_path / "one.ckpt")
    assert script.main([str(path), str(disk)]) == 2
    assert f"`output` must not be a mounted file system, got {disk}" in capsys.readouterr().err
    ballast = fill(disk, 64 << 10)
    assert script.main([str(path), str(disk / "out")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: The disk is full: {disk / 'out'} could not be written; ")
    assert sorted(disk.iterdir()) == [ballast]
    ballast.unlink()
    assert script.main([str(path), str(disk / "out")]) == 0
