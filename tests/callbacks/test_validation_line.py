"""The line after a validation, and its difference to the one before, also in a resumed run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning_pspo.callbacks.validation_line import summary

from lightning_pspo.cli.main import main
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.statistics import share_interval


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


def test_a_resumed_run_compares_with_the_last_validation(
    tmp_path: Path, tiny_run: Callable[..., list[str]], problem_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of rollout 2 is older than the validation of rollout 2, which is not due again in a longer run."""
    root = tmp_path / "run"
    arguments = ["fit", *tiny_run(root, "--trainer.callbacks+=ValidationLine", "--trainer.val_check_interval=4")]
    arguments += ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.overlap=warn"]
    main([*arguments, "--data.num_rollouts=2"])
    history = json.loads((root / "validations.json").read_bytes())
    assert history.keys() == {"2"}
    (root / "validations.json").write_text(json.dumps({"1": {"few": 0.9}, "2": {"few": 0.25}, "7": {"few": 0.9}}))
    capfd.readouterr()
    main([*arguments, "--data.num_rollouts=4", "--ckpt_path=last"])
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("val rollout"))
    accuracy, difference = re.search(r"accuracy ([\d.]+) % .*\(([+-][\d.]+)\)", line).groups()  # type: ignore[union-attr]
    assert float(difference) == pytest.approx(float(accuracy) - 25.0, abs=0.11)
    assert json.loads((root / "validations.json").read_bytes()).keys() == {"1", "2", "4"}
