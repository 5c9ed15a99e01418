"""The quickstart script's own part: earlier runs and interruptions."""

import importlib.util
import os
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "quickstart.py"
spec = importlib.util.spec_from_file_location("quickstart", PATH)
quickstart = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quickstart)


@pytest.fixture
def runs(monkeypatch):
    """What the script hands to the command line, which these tests leave out."""
    calls = []
    monkeypatch.setattr("lightning_pspo.cli.main.main", calls.append)
    return calls


def test_settings_reach_the_command_line(tmp_path, runs, capsys):
    assert quickstart.main(["--seed", "5", "--root", str(tmp_path / "run")]) == 0
    (arguments,) = runs
    assert arguments[0] == "fit"
    assert arguments[arguments.index("--seed_everything") + 1] == "5"
    assert arguments[arguments.index("--trainer.default_root_dir") + 1] == str(tmp_path / "run")
    assert f"{tmp_path / 'run' / 'summary.json'}" in capsys.readouterr().out


def test_an_earlier_run_is_moved_aside_under_its_own_time(tmp_path, runs, capsys):
    root = tmp_path / "run"
    for text in ("first", "second"):
        (root / "checkpoints").mkdir(parents=True)
        (root / "summary.json").write_text(text)
        for path in (root / "summary.json", root / "checkpoints"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        quickstart.main(["--root", str(root)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-20231114T221320Z", "run-20231114T221320Z-2"]
    assert (tmp_path / "run-20231114T221320Z" / "summary.json").read_text() == "first"
    assert "moved to" in capsys.readouterr().out


def test_the_working_directory_is_never_moved(tmp_path, runs, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit, match="--root must be a new folder"):
        quickstart.main(["--root", ".."])
    assert runs == []


def interrupt(arguments):
    """End as Lightning does after Ctrl-C."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


@pytest.mark.parametrize(
    ("checkpoints", "advice"), [(["rollout=000010.ckpt"], "--ckpt_path last"), ([], "start again")]
)
def test_ctrl_c_says_how_to_continue(tmp_path, monkeypatch, capsys, checkpoints, advice):
    root = tmp_path / "run"

    def interrupted(arguments):
        for name in checkpoints:
            (root / "checkpoints").mkdir(parents=True)
            (root / "checkpoints" / name).touch()
        interrupt(arguments)

    monkeypatch.setattr("lightning_pspo.cli.main.main", interrupted)
    assert quickstart.main(["--root", str(root)]) == 130
    assert advice in capsys.readouterr().err


def test_other_exits_are_passed_on(tmp_path, monkeypatch):
    def refuse(arguments):
        raise SystemExit(2)

    monkeypatch.setattr("lightning_pspo.cli.main.main", refuse)
    with pytest.raises(SystemExit) as caught:
        quickstart.main(["--root", str(tmp_path / "run")])
    assert caught.value.code == 2
