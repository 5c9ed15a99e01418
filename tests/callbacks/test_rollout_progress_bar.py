"""What a run shows while it goes on: its line in a terminal, plain lines elsewhere, completions, validations."""

import contextlib
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning_pspo.callbacks import RolloutProgressBar

from lightning_pspo import progress
from lightning_pspo.cli.main import main
from tests.support.hand_made import fit
from tests.support.terminal import Terminal


class Spy(RolloutProgressBar):
    """Keeps the line at the start and the end of every batch."""

    def setup(self, *arguments, **options):
        super().setup(*arguments, **options)
        self.lines = [progress.WORK.line(0.0)]

    def on_train_batch_end(self, *arguments):
        self.lines.append(progress.WORK.stage)
        super().on_train_batch_end(*arguments)
        self.lines.append(progress.WORK.line(self._begun))

    def on_validation_batch_start(self, *arguments):
        super().on_validation_batch_start(*arguments)
        self.lines.append(progress.WORK.stage)


def test_the_line_says_what_runs_and_is_gone_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spy = Spy()
    fit(tmp_path, [spy], rollouts=2)
    stages = [line for line in spy.lines if "saving" not in line]
    assert "loading the model" in stages[0]
    assert stages[1:3] == ["before held_out 1/2", "before held_out 2/2"]
    assert stages[3:5] == ["rollout 1/2", "rollout 2/2"]
    assert stages[5:] == ["validate held_out 1/2", "validate held_out 2/2"]
    assert re.search(r"rollout 1/2  saving .* loss 1\.000  0:0\d left$", next(x for x in spy.lines if "saving" in x))
    assert progress._shown is None
    assert "rollout" not in capsys.readouterr().err, "a short run says nothing in a file"


@pytest.fixture
def command(tmp_path: Path, tiny_run: Callable[..., list[str]], problem_file: Path) -> list[str]:
    """The command of a run that shows all that there is to show."""
    arguments = tiny_run(tmp_path / "run", "--trainer.callbacks+=LiveSamples", "--trainer.callbacks+=ValidationLine")
    arguments += ["--data.val.held_out=JSONL", f"--data.val.held_out.path={problem_file}"]
    arguments += ["--data.val.held_out.limit=4", "--data.overlap=warn", "--trainer.num_sanity_val_steps=-1"]
    arguments += ["--trainer.enable_progress_bar=true", "--trainer.val_check_interval=2", "--data.num_rollouts=4"]
    return ["fit", *arguments]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_run_in_a_terminal(command: list[str], monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """No line is wider than the terminal, none is printed twice, and nothing but the report follows the result."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    terminal = Terminal(columns)
    parts: list[str] = []
    reader = threading.Thread(target=lambda: parts.extend(iter(terminal.read, "")), daemon=True)
    reader.start()
    more = ["--trainer.callbacks+=RunSummary", "--model.sampling.max_new_tokens=16"]
    with contextlib.ExitStack() as streams:
        for name in ("stdout", "stderr"):
            streams.enter_context(monkeypatch.context()).setattr(sys, name, terminal.stream)
        main([*command, *more])
    terminal.close()
    reader.join(60)
    text = "".join(parts)
    frames = re.findall(r"\r([^\r\n]*?)\x1b\[K", text)
    assert frames
    assert max(map(len, frames)) < columns
    for part in (
        "loading the model|reading the problems",
        "before held_out|1/",
        r"rollout \d/4|\d/4",
        "sampling",
        "update",
    ):
        assert any(re.search(part, frame) for frame in frames), part
    screen = "\n".join(terminal.screen)
    assert len(re.findall("val rollout 4: held_out", screen)) == 1
    assert len(re.findall("held_out: 4 rollouts", screen)) == 1
    assert "sampling" not in screen, "no line of progress stays"
    assert ("verdict" in text) == (columns >= 60), "completions, where there is room"


def test_a_refused_run_is_shown_no_longer(tmp_path: Path, tiny_run: Callable[..., list[str]]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *tiny_run(tmp_path), "--trainer.enable_progress_bar=true", "--data.train.path=missing.jsonl"])
    assert progress._shown is None


def test_a_run_in_a_pipe_has_a_line_for_each_validation(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    main(command)
    printed = capfd.readouterr().out
    assert not re.search(r"[\x1b\r]", printed)
    lines = [line for line in printed.splitlines() if line.startswith("val rollout")]
    number = r"\d+\.\d"
    accuracy = rf"accuracy {number} % \[{number}, {number}\](| \([+-]{number}\))"
    matches = [re.fullmatch(rf"val rollout (\d): held_out {accuracy}, length \d+ tokens", line) for line in lines]
    assert [match and (match[1], match[2] != "") for match in matches] == [("0", False), ("2", True), ("4", True)]
    assert "verdict" not in printed, "a table is for a terminal"
