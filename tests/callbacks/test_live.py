"""What a run shows while it goes on: phases and their time left, the latest completions, a line per validation."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_pspo.callbacks import LiveSamples, RolloutProgressBar
from lightning_pspo.callbacks._phase_clock import PhaseClock, running
from lightning_pspo.callbacks.live_samples import one_line, sample_table
from lightning_pspo.callbacks.validation_line import summary
from rich.console import Console

from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.statistics import share_interval
from lightning_pspo.training.phases import Phases, timed
from lightning_pspo.types import Completions, Problem, PromptBatch, Rollout, Sample

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def rollout(texts: list[str]) -> Rollout:
    """Completions of as many prompts, one each; every other one is right."""
    problems = tuple(Problem(f"p{place}", f"question {place}", "2") for place in range(len(texts)))
    ids = torch.zeros(len(texts), 1, dtype=torch.long)
    verdicts = [Verdict.WRONG if place % 2 else Verdict.CORRECT for place in range(len(texts))]
    samples = [
        Sample(problem, text, Grade(verdict, "2", "hash"), False, 7)
        for problem, text, verdict in zip(problems, texts, verdicts, strict=True)
    ]
    rewards = torch.tensor([[float(verdict is Verdict.CORRECT)] for verdict in verdicts])
    prompts = PromptBatch("train", problems, ids, ids == 0, torch.arange(len(texts)), ids[:, 0] == 0)
    completions = Completions(ids, ids == 0, ids[:, 0] == 1)
    return Rollout(prompts, completions, samples, rewards, {}, rewards, torch.zeros(len(texts), 1))


def drawn(table: object, width: int = 120) -> str:
    """Return what a terminal would get."""
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=width, color_system=None).print(table)
    return out.getvalue()


def test_the_clock_estimates_from_the_last_iterations() -> None:
    clock = PhaseClock(window=2)
    assert (clock.means(), clock.left(3)) == ({}, {})
    for seconds in (100.0, 1.0, 3.0):
        clock.add({"rollout": seconds, "reward": 0.5, "old_logprobs": 0.25, "update": 1.0, "other": 9.0}, 2 * seconds)
    assert clock.means() == {"rollout": 2.0, "grading": 0.5, "update": 1.25}
    assert clock.left(4) == {"rollout": 8.0, "grading": 2.0, "update": 5.0, "all": 16.0}


def test_the_phase_that_runs_is_known_while_it_runs() -> None:
    begun: list[str] = []
    phases = Phases([begun.append])
    assert running(phases, {}) == running(None, {}) == ""
    for name in ("rollout", "reward", "rollout"):
        with timed(phases, name):
            assert phases.current == name
            assert running(phases, {}) == f"{ {'reward': 'grading'}.get(name, name) }: 0:00:00"
            assert running(phases, {"rollout": 3600.2, "grading": 60.4}).endswith(" left")
    assert running(phases, {}) == ""
    assert begun == ["rollout", "reward", "rollout"]
    assert list(phases) == ["rollout", "reward"]
    phases.current, phases.since = "update", 0.0
    assert running(phases, {"update": 1.0}) == "update: 0:00:00 left", "what takes longer than usual has no time left"


HOSTILE = ["[bold red]A[/] [link=x]y", "\x1b[2J\x1b]0;t\x07B\r\n#### 2", "\u202eC\u200b\x9b5m", "x" * 500 + "#### 9"]


def test_the_table_shows_completions_as_they_are() -> None:
    shown = drawn(sample_table(rollout(HOSTILE), 12, 4))
    assert "Rollout 12" in shown
    assert "[bold red]A[/] [link=x]y" in shown
    assert r"\x1b[2J\x1b]0;t\x07B\r\n#### 2" in shown
    assert r"\u202eC\u200b\x9b5m" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u200b]", shown)
    rows = [line for line in shown.splitlines() if "question" in line][1:]
    assert [("correct" in row, "wrong" in row) for row in rows] == [(True, False), (False, True)] * 2
    assert [row.split("│")[2].strip() for row in rows] == ["1", "0", "1", "0"]
    assert max(map(len, shown.splitlines())) <= 120


def test_the_rows_are_spread_over_the_prompts() -> None:
    shown = drawn(sample_table(rollout([f"said {place}." for place in range(8)]), 1, 3))
    assert re.findall(r"said (\d)\.", shown) == ["0", "2", "5"]
    assert len(re.findall(r"said", drawn(sample_table(rollout(["said"] * 2), 1, 5)))) == 2


def test_a_long_text_keeps_its_end() -> None:
    assert one_line("a" * 50 + "#### 12", 21) == "aaaaaaaaa … aa#### 12"
    assert len(one_line("ab" * 400, 60)) <= 60


def test_the_line_of_a_validation() -> None:
    shares = [1.0] * 8 + [0.0] * 2
    estimates = {"accuracy": share_interval(shares)}
    results = {
        "held_out": EvaluationResult(0.8, 10, 10, 8, 31.4, 0.0, estimates),
        "gsm8k": EvaluationResult(0.5, 2, 2, 1, 9.6, 0.0),
    }
    low, high = 100 * estimates["accuracy"].low, 100 * estimates["accuracy"].high
    assert summary(10, results, {"held_out": 0.842}) == (
        f"val rollout 10: held_out accuracy 80.0 % [{low:.1f}, {high:.1f}] (-4.2), length 31 tokens; "
        "gsm8k accuracy 50.0 %, length 10 tokens"
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LiveSamples(rows=0), r"`rows` must be at least 1, got 0\."),
        (lambda: LiveSamples(every_n_rollouts=0), r"`every_n_rollouts` must be at least 1, got 0\."),
        (lambda: RolloutProgressBar(phase_lines_s=-1), r"`phase_lines_s` must be at least 0, got -1\."),
    ],
)
def test_numbers_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def command(tiny_run, problem_file: Path, root: Path, *more: str) -> list[str]:
    """Return a run with everything on the screen, and a validation after every second rollout."""
    callbacks = ["RewardLogger", "RolloutProgressBar", "LiveSamples", "ValidationLine"]
    shown = [f"--trainer.callbacks+=callbacks.{name}" for name in callbacks]
    validation = ["--data.val.held_out=JSONL", f"--data.val.held_out.path={problem_file}", "--data.overlap=warn"]
    bar = ["--trainer.enable_progress_bar=true", "--trainer.val_check_interval=2", "--data.num_rollouts=4"]
    return [*tiny_run(root), *shown, *validation, *bar, "--trainer.num_sanity_val_steps=-1", *more]


def test_a_run_in_a_pipe_says_it_in_plain_lines(tmp_path, tiny_run, problem_file, capfd) -> None:
    slow = ["--trainer.callbacks+=RolloutProgressBar", "--trainer.callbacks.phase_lines_s=0"]
    arguments = [one for one in command(tiny_run, problem_file, tmp_path / "run") if "RolloutProgressBar" not in one]
    main(["fit", *arguments, *slow])
    printed = capfd.readouterr().out
    assert not re.search(r"[\x1b\r]", printed)
    lines = [line for line in printed.splitlines() if line.startswith("val rollout")]
    pattern = (
        r"val rollout (\d): held_out accuracy \d+\.\d % \[\d+\.\d, \d+\.\d\](| \([+-]\d+\.\d\)), length \d+ tokens"
    )
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [one and one[1] for one in found] == ["0", "2", "4"]
    assert [bool(one and one[2]) for one in found] == [False, True, True]
    begins = re.findall(r"^rollout (\d): (\w+) begins, about \d:\d\d:\d\d$", printed, flags=re.MULTILINE)
    assert begins == [(number, name) for number in "234" for name in ("rollout", "grading", "update")]
    assert re.search(r"rollout 4/4 .* left 0:00:00 \(rollout 0:00:00, grading 0:00:00, update 0:00:00\)", printed)
    assert "verdict" not in printed, "a table is for a terminal"


def test_the_difference_goes_on_in_a_resumed_run(tmp_path, tiny_run, problem_file, capfd) -> None:
    arguments = command(tiny_run, problem_file, tmp_path / "run", "--trainer.val_check_interval=1")
    main(["fit", *arguments, "--data.num_rollouts=2"])
    capfd.readouterr()
    main(["fit", *arguments, "--data.num_rollouts=3", "--ckpt_path=last"])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("val rollout")]
    assert re.match(r"val rollout 3: held_out accuracy .* \([+-]", lines[-1])


@pytest.mark.slow
def test_a_run_in_a_terminal_draws_phases_and_completions(tmp_path, tiny_run, problem_file) -> None:
    """In a process with a terminal of its own, whose bytes are read back."""
    words = [sys.executable, "-W", "ignore", "-m", "lightning_pspo", "fit"]
    words += command(tiny_run, problem_file, tmp_path / "run", "--data.num_rollouts=8", "--model.max_new_tokens=24")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40", "PYTHONPATH": str(ROOT)}
    leader, follower = pty.openpty()
    process = subprocess.Popen(words, stdout=follower, stderr=follower, cwd=tmp_path, env=environment)
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    text = b"".join(parts).decode(errors="replace")
    assert process.wait(timeout=60) == 0, text[-3000:]
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "Rollout" in plain
    assert re.search(r"Left: rollout \d:\d\d:\d\d, grading \d:\d\d:\d\d, update \d:\d\d:\d\d", plain)
    assert re.search(r"(rollout|grading|update): \d:\d\d:\d\d", plain)
    assert re.search(r"verdict.*reward.*tokens.*question.*completion", plain)
    assert "What is" in plain
    assert re.search(r"val rollout 8: held_out accuracy", plain)
