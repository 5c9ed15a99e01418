"""Signals save and stop the run; it then goes on to the same bits as one that nobody disturbed."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_pspo.callbacks import Preemption, RolloutCheckpoint

from lightning_pspo.checkpoints.integrity import check_whole
from lightning_pspo.checkpoints.store import find_checkpoints
from lightning_pspo.cli.main import main
from tests.support.checkpoints import same_weights
from tests.support.hand_made import fit
from tests.support.processes import SLOW_REWARD, ended, start, wait_for

Command = Callable[..., list[str]]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture
def command(tiny_run: Command, tmp_path: Path) -> Command:
    """Return a function that gives the arguments of three rollouts that take their time, saved by Preemption alone."""
    (tmp_path / "slow_reward.py").write_text(SLOW_REWARD)

    def build(root: Path, *more: str, seconds: float = 0.4, every: int = 100) -> list[str]:
        settings = [f"--trainer.callbacks.every_n_rollouts={every}", "--trainer.callbacks+=Preemption"]
        settings += ["--model.optimizer.lr=0.01", "--model.updates_per_rollout=2", "--model.reward=slow_reward.Slow"]
        settings += [f"--model.reward.folder={tmp_path}", f"--model.reward.seconds={seconds}", "--ckpt_path=last"]
        return ["fit", *tiny_run(root, *settings, *more)]

    return build


@pytest.mark.slow
def test_a_signal_saves_and_stops(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    process = start(command(root), tmp_path)
    wait_for((tmp_path / "rewarding-0").exists, process)
    for _ in range(3):  # a second one changes nothing
        os.kill(process.pid, signal.SIGUSR1)
    status, output = ended(process)
    assert status == 138, output
    (saved,) = find_checkpoints(root / "checkpoints")
    check_whole(saved)
    rollout = int(saved.stem[-6:])
    assert f"Stopped by SIGUSR1 after rollout {rollout}. Saved {saved}. To resume, run the same" in output
    assert "Traceback" not in output
    monkeypatch.syspath_prepend(tmp_path)
    main(command(root, seconds=0.0))
    main(command(undisturbed, seconds=0.0))
    assert same_weights(root, undisturbed, 3)


class Signal(Callback):
    """Sends a signal in the second rollout."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("others", [[], [RolloutCheckpoint(every_n_rollouts=1)]], ids=["alone", "beside another"])
def test_the_rollout_that_is_saved_has_been_logged(tmp_path: Path, others: list[Callback]) -> None:
    """The resumed run begins after it."""
    with pytest.raises(SystemExit):
        fit(tmp_path, [Signal(), *others, Preemption()], enable_checkpointing=True)
    assert (tmp_path / "checkpoints/rollout=000002.ckpt").is_file()
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open() as lines:
        assert [row["step"] for row in csv.DictReader(lines) if row["train/loss"]] == ["1", "2"]


@pytest.mark.slow
def test_a_further_signal_while_the_process_ends(command: Command, tmp_path: Path) -> None:
    """It does not change the status, by which a job script tells that the run was saved."""
    (tmp_path / "slow_end.py").write_text(
        "import atexit, time\nfrom pathlib import Path\nfrom lightning.pytorch import Callback\n\n\n"
        "def end():\n"
        f"    Path({str(tmp_path / 'ending')!r}).touch()\n"
        "    time.sleep(0.5)\n\n\n"
        "class SlowEnd(Callback):\n"
        "    def setup(self, trainer, pl_module, stage):\n"
        "        atexit.register(end)\n"
    )
    process = start(command(tmp_path / "run", "--trainer.callbacks+=slow_end.SlowEnd"), tmp_path)
    wait_for((tmp_path / "rewarding-0").exists, process)
    os.kill(process.pid, signal.SIGTERM)
    wait_for((tmp_path / "ending").exists, process)
    os.kill(process.pid, signal.SIGTERM)
    status, output = ended(process)
    assert status == 143, output


@pytest.mark.slow
def test_two_ranks_agree_to_stop(command: Command, tmp_path: Path) -> None:
    """One of them gets the signal."""
    root = tmp_path / "run"
    process = start(command(root, *TWO, seconds=1.0), tmp_path)
    wait_for((tmp_path / "rewarding-1").exists, process)
    os.kill(process.pid, signal.SIGTERM)
    status, output = ended(process)
    assert status == 143, output
    assert output.count("Stopped by SIGTERM after rollout") == 1
    (saved,) = find_checkpoints(root / "checkpoints")
    check_whole(saved)
    assert "Traceback" not in output


@pytest.mark.slow
def test_in_a_validation(command: Command, tmp_path: Path, problem_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is that of the rollout before it, and the validation is done again."""
    (tmp_path / "slow_validation.py").write_text(
        "import time\nfrom pathlib import Path\nfrom lightning.pytorch import Callback\n\n\n"
        "class Slow(Callback):\n"
        "    def __init__(self, seconds: float):\n"
        "        self.seconds = seconds\n\n"
        "    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):\n"
        f"        with (Path({str(tmp_path)!r}) / 'batches').open('a') as file:\n"
        "            file.write(f'{trainer.global_step} {batch_idx}\\n')\n"
        "        time.sleep(self.seconds)\n"
    )
    more = ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.eval_batch_size=4"]
    more += ["--trainer.val_check_interval=2", "--trainer.callbacks+=slow_validation.Slow"]
    root, undisturbed, batches = tmp_path / "run", tmp_path / "undisturbed", tmp_path / "batches"
    process = start(command(root, *more, "--trainer.callbacks.seconds=0.5", seconds=0.0), tmp_path)
    wait_for(lambda: batches.exists() and "4 1" in batches.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    status, output = ended(process)
    assert (status, [path.name for path in find_checkpoints(root / "checkpoints")]) == (143, ["rollout=000002.ckpt"])
    assert "after rollout 2. Saved" in output
    assert len(batches.read_text().splitlines()) < 5
    batches.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    main(command(root, *more, "--trainer.callbacks.seconds=0", seconds=0.0))
    assert batches.read_text().splitlines() == [f"4 {batch}" for batch in range(5)]
    main(command(undisturbed, *more, "--trainer.callbacks.seconds=0", seconds=0.0))
    assert same_weights(root, undisturbed, 3)


@pytest.mark.slow
def test_ctrl_c_stops_at_once(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "run"
    process = start(command(root, seconds=0.5, every=1), tmp_path)
    wait_for(lambda: len(find_checkpoints(root / "checkpoints")) > 0, process)
    os.killpg(process.pid, signal.SIGINT)
    status, output = ended(process)
    assert status == 130, output
    for path in find_checkpoints(root / "checkpoints"):
        check_whole(path)
