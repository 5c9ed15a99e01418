"""The report that a run writes at its end."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.cli.main import main as train
from tests.support.report_runs import plain, write_run


def test_the_callback(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """Named before the callbacks whose files it shows."""
    other = write_run(tmp_path / "baseline")
    arguments = tiny_run(
        tmp_path / "run",
        "--trainer.callbacks+=RunReport",
        f"--trainer.callbacks.others=[{other}]",
        "--trainer.callbacks+=CompletionTable",
        "--trainer.callbacks.every_n_rollouts=1",
    )
    arguments = [argument for argument in arguments if not argument.startswith("--trainer.logger")]
    train(["fit", *arguments, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    words = plain(page)
    assert "2 runs" in words
    assert re.search(r"run 1 seed: 0 3 –", words)  # one seed, which is 0; three rollouts
    assert "Rollout 3" in words
    assert 'class="line c0 d0" data-arm="0" data-name="run"' in page
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["versions"]["torch"] in words
    assert environment["ranks"] == 1


def test_a_report_that_cannot_be_written_ends_no_run(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "run" / "taken").mkdir(parents=True)
    report = ["--trainer.callbacks+=RunReport", "--trainer.callbacks.filename=taken"]
    with pytest.warns(UserWarning, match="No taken: --output must be a file"):
        train(["fit", *tiny_run(tmp_path / "run", *report)])
