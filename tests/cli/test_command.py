"""The program as a process: what answers without torch, how fast the rest is, and output that nobody reads."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_warn

from lightning_pspo import __version__
from lightning_pspo.__main__ import command
from lightning_pspo.cli.help import COMMANDS, LIGHTNING

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
SMALL = [
    *("--config=quickstart", "--data.val=null", "--data.num_rollouts=2", "--data.prompts_per_rollout=2"),
    *("--model.group_size=2", "--trainer.default_root_dir=run", "--trainer.num_sanity_val_steps=0"),
    "--data.train.size=64",
]


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "lightning_pspo", *arguments],
        cwd=folder,
        env=ENVIRONMENT | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_version_and_overview(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"lightning-pspo {__version__}\n"
    assert run(tmp_path, "-h").stdout == run(tmp_path, "--help").stdout != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "unknown subcommand `fitt`; did you mean `fit`?"),
        (["run_until_done"], "unknown subcommand `run_until_done`; did you mean `run-until-done`?"),
        (["\x1b[2J"], "unknown subcommand `␛[2J`; choose from"),
        (["doctor", "--config", "\x1b[2J"], "packaged configuration: ␛[2J; packaged ones are"),
        (["qqq"], "unknown subcommand `qqq`; choose from `fit`, `validate`, "),
        ([], "a subcommand must come first; choose from `fit`, `validate`, "),
        (["--model.group_size=4"], "a subcommand must come first; choose from `fit`, "),
        (["--config", "quickstart", "fit"], "settings follow the subcommand: `fit --config quickstart`."),
        (
            ["fit", "--config", "nowhere.yaml"],
            "`--config` names neither a file nor a packaged configuration: nowhere.yaml",
        ),
        (
            ["doctor", "--config=nowhere.yaml"],
            "`--config` names neither a file nor a packaged configuration: nowhere.yaml",
        ),
    ],
)
def test_mistakes_before_torch_is_imported(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, *arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 2
    assert not [line for line in done.stderr.splitlines() if line.endswith("| torch")]
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_of_the_projects_own_subcommands_needs_no_torch() -> None:
    code = f"""
import importlib, sys
for name in {[name for name in COMMANDS if name not in LIGHTNING]}:
    text = importlib.import_module("lightning_pspo.cli." + name.replace("-", "_")).parser().format_help()
    assert text.startswith("usage: lightning-pspo " + name + " ")
    assert not any(word in text for word in ("scripts/", "docs/", "python -m")), text
    assert "torch" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def test_files_named_like_those_of_the_library(tmp_path: Path) -> None:
    """The installed command searches the working directory after the standard library."""
    for name in ("types", "random", "statistics", "signal", "queue", "calendar", "code"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    code = "from lightning_pspo.__main__ import command; command()"
    words = [sys.executable, "-P", "-c", code, "fit", "--model.reward=types.Mine"]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: `--model.reward`: `types` has no Reward `Mine`."


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    command = f'cd "{folder}" && rmdir "{folder}" && "{sys.executable}" -P -m lightning_pspo fit --config quickstart'
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: the working directory no longer exists: change to another one.",
    )


@pytest.mark.slow
def test_a_run_outlives_its_reader_and_a_plain_terminal(tmp_path: Path) -> None:
    """``fit ... | head -1``, under an encoding that knows ASCII only, ends well and has all its results."""
    with subprocess.Popen(
        [sys.executable, "-m", "lightning_pspo", "fit", *SMALL],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(300) == 0
    assert (tmp_path / "run" / "report.html").is_file()  # the last that is written
    assert len(list((tmp_path / "run" / "ledger").iterdir())) > 0


@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_output_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    redirection = "> /dev/full 2>&1" if where == "/dev/full" else ">&- 2>&-"
    command = f'"{sys.executable}" -m lightning_pspo grade --output out.jsonl in.jsonl {redirection}'
    (tmp_path / "in.jsonl").write_text(json.dumps({"response": "#### 4", "answer": "4"}) + "\n")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["verdict"] == "correct"


def test_warnings_are_plain_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # so that it is restored
    with pytest.raises(SystemExit):
        command(["--version"])
    rank_zero_warn("Low on\nmemory.")
    assert capfd.readouterr().err == "warning: Low on memory.\n"
