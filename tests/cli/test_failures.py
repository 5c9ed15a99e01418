"""Errors of the file system: one line where ours, a traceback where a user's own code has caused them."""

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.cli.failures import describe_failure, short_path
from lightning_pspo.cli.main import main
from lightning_pspo.files import open_file


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "Broken", "/net/a"), "a file could not be read or written (/net/a): Broken; give the same"),
        (OSError(errno.ESTALE, "Stale"), "a file could not be read or written: Stale; give the same command again."),
        (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/a"), None),
        (ValueError("no"), None),
    ],
)
def test_a_failing_file_system_is_no_fault_of_the_program(error: Exception, line: str | None) -> None:
    status, message = describe_failure(error, None)
    assert status == 1
    assert message is None if line is None else str(message).startswith(line)


def test_a_pipe_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe")
    with pytest.raises(OSError, match="a device or a pipe") as caught:
        open_file(path)
    line = f"`{short_path(path)}` cannot be used: it must be a file, but is a device or a pipe."
    assert describe_failure(caught.value, None) == (2, line)


OWN = """
import os
from pathlib import Path
from lightning.pytorch import Callback

class Fails(Callback):
    def __init__(self, error: int):
        self.error = error

    def on_train_batch_end(self, trainer, *_):
        if self.error:
            raise OSError(self.error, os.strerror(self.error), "/net/a")
        Path("/dev/null/a").write_text("mine")
"""


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, 0])
def test_a_fault_of_a_users_callback_keeps_its_traceback(
    tiny_run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (tmp_path / "own_failing.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    callback = ["--trainer.callbacks+=own_failing.Fails", f"--trainer.callbacks.error={error}"]
    with pytest.raises(OSError, match=r"/net/a|/dev/null/a"):
        main(["fit", *tiny_run(tmp_path / "run", *callback)])


def test_a_warning_that_python_makes_an_error_is_one_line() -> None:
    line = "Few samples. `PYTHONWARNINGS` or `-W` makes an error of this warning."
    assert describe_failure(UserWarning("Few\nsamples."), None) == (1, line)


def test_no_warning_is_about_how_the_program_uses_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsonargparse._deprecated.shown_deprecation_warnings", set())  # each is shown once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", "quickstart", "--print_config"])
    assert not end.value.code


def test_settings_of_a_slurm_job_that_lightning_refuses_are_one_line(
    tiny_run: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["fit", *tiny_run(tmp_path)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "error: You set `--ntasks=4`" in error
    assert "Use `--ntasks-per-node=4` instead." in error
    assert "Traceback" not in error
