"""What a run shows while it goes on, in a pipe and in a terminal: bar, phases, completions, a line per validation."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning_pspo.callbacks import RewardLogger, RolloutProgressBar

from lightning_pspo.cli.main import main
from tests.support.hand_made import fit

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def test_the_progress_bar_prints_plain_lines_into_a_file(tmp_path, capsys):
    fit(tmp_path, [RewardLogger(), RolloutProgressBar(line_every_n_rollouts=2)], rollouts=5)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\r" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("rollout")]
    assert [line.split("  ")[0] for line in lines] == [f"rollout {n}/5" for n in (1, 2, 4, 5)]
    assert lines[0].split("  ")[1:4] == ["reward 0.750", "accuracy 0.750", "loss 1.000"]
    assert lines[-1].endswith("left 0:00:00 (rollout 0:00:00, grading 0:00:00, update 0:00:00)")
    assert "Before held_out" in printed
    assert "Validate held_out" in printed


def command(tiny_run, problem_file: Path, root: Path, *more: str) -> list[str]:
    """Return a run with everything on the screen, and a validation after every second rollout."""
    callbacks = ["RewardLogger", "RolloutProgressBar", "LiveSamples", "ValidationLine"]
    shown = [f"--trainer.callbacks+={name}" for name in callbacks]
    validation = ["--data.val.held_out=JSONL", f"--data.val.held_out.path={problem_file}", "--data.overlap=warn"]
    bar = ["--trainer.enable_progress_bar=true", "--trainer.val_check_interval=2", "--data.num_rollouts=4"]
    return [*tiny_run(root), *shown, *validation, *bar, "--trainer.num_sanity_val_steps=-1", *more]


def test_a_run_in_a_pipe_says_it_in_plain_lines(tmp_path, tiny_run, problem_file, capfd) -> None:
    arguments = command(tiny_run, problem_file, tmp_path / "run")
    bar = arguments.index("--trainer.callbacks+=RolloutProgressBar")
    arguments.insert(bar + 1, "--trainer.callbacks.phase_lines_s=0")
    main(["fit", *arguments])
    printed = capfd.readouterr().out
    assert not re.search(r"[\x1b\r]", printed)
    lines = [line for line in printed.splitlines() if line.startswith("val rollout")]
    number = r"\d+\.\d"
    accuracy = rf"accuracy {number} % \[{number}, {number}\](| \([+-]{number}\))"
    matches = [re.fullmatch(rf"val rollout (\d): held_out {accuracy}, length \d+ tokens", line) for line in lines]
    assert [match and (match[1], match[2] != "") for match in matches] == [("0", False), ("2", True), ("4", True)]
    begins = re.findall(r"^rollout (\d): (\w+) begins, about \d:\d\d:\d\d$", printed, flags=re.MULTILINE)
    assert begins == [(number, name) for number in "234" for name in ("rollout", "grading", "update")]
    assert re.search(r"rollout 4/4 .* left 0:00:00 \(rollout 0:00:00, grading 0:00:00, update 0:00:00\)", printed)
    assert "verdict" not in printed, "a table is for a terminal"


@pytest.mark.slow
def test_a_run_in_a_terminal_draws_phases_and_completions(tmp_path, tiny_run, problem_file) -> None:
    """In a process with a terminal of its own, whose bytes are read back."""
    more = ["--data.num_rollouts=8", "--model.sampling.max_new_tokens=24"]
    words = [sys.executable, "-W", "ignore", "-m", "lightning_pspo", "fit"]
    words += command(tiny_run, problem_file, tmp_path / "run", *more)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40", "PYTHONPATH": str(ROOT)}
    leader, follower = pty.openpty()
    process = subprocess.Popen(words, stdout=follower, stderr=follower, cwd=tmp_path, env=environment)
    os.close(follower)
    parts = []
    with contextlib.suppress(OSError):  # at the end, when the other side is closed
        while part := os.read(leader, 65536):
            parts.append(part)
    os.close(leader)
    text = b"".join(parts).decode(errors="replace")
    assert process.wait(timeout=60) == 0, text[-3000:]
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "Rollout" in plain
    assert re.search(r"reward: \d\.\d{3} accuracy: \d\.\d{3}", plain)
    assert re.search(r"Left: rollout \d:\d\d:\d\d, grading \d:\d\d:\d\d, update \d:\d\d:\d\d", plain)
    assert re.search(r"(rollout|grading|update): \d:\d\d:\d\d", plain)
    assert re.search(r"verdict.*reward.*tokens.*question.*completion", plain)
    assert "What is" in plain
    assert re.search(r"val rollout 8: held_out accuracy", plain)
