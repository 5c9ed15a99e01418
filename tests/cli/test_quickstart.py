"""The quickstart's own part: earlier runs and interruptions; the run itself is tested where it is installed."""

import os
import signal
from pathlib import Path

import pytest

from lightning_pspo.cli.quickstart import main, move_earlier_run
from lightning_pspo.errors import InputError
from tests.support.processes import ended, start, wait_for

SMALL = ["--trainer.num_sanity_val_steps=0", "--data.val=null", "--model.group_size=2", "--data.prompts_per_rollout=2"]
SMALL += ["--data.train.size=64"]


def test_an_earlier_run_is_moved_aside_under_its_own_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "run"
    for text in ("first", "second"):
        (root / "checkpoints").mkdir(parents=True)
        (root / "summary.json").write_text(text)
        for path in (root / "summary.json", root / "checkpoints"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        move_earlier_run(root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-20231114T221320Z", "run-20231114T221320Z-2"]
    assert (tmp_path / "run-20231114T221320Z" / "summary.json").read_text() == "first"
    assert "moved to" in capsys.readouterr().out


def test_the_working_directory_is_never_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="--root must be a new folder"):
        move_earlier_run(Path(".."))
    assert main(["--root", ".."]) == 2
    assert "error: --root must be a new folder" in capsys.readouterr().err
    assert (tmp_path / "here").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("rollouts", "advice"), [(1, "--ckpt_path last"), (100, "start again")])
def test_ctrl_c_says_how_to_continue(tmp_path: Path, rollouts: int, advice: str) -> None:
    """Interrupted after the first checkpoint, or before it; what is advised goes on."""
    settings = [*SMALL, f"--trainer.callbacks.every_n_rollouts={rollouts}", "--data.num_rollouts=500"]
    callbacks = ["--trainer.callbacks=RolloutCheckpoint"]
    process = start(["quickstart", "--root", "my run", *callbacks, *settings], tmp_path)
    begun = tmp_path / "my run" / ("checkpoints/rollout=000001.ckpt" if rollouts == 1 else "config.yaml")
    wait_for(begun.exists, process)
    process.send_signal(signal.SIGINT)
    status, output = ended(process)
    assert status == 130
    assert advice in output
    if rollouts == 1:
        assert "--trainer.default_root_dir 'my run'" in output
