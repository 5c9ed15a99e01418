"""The doctor's probe on real runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.cli import doctor as command
from lightning_pspo.cli.main import main as command_line
from lightning_pspo.preflight.doctor.findings import Finding, Severity, exit_code, from_rows
from tests.support.models import make_model

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor.py"])


def examined(folder: Path, arguments: list[str]) -> tuple[list[Finding], dict[str, Any]]:
    """Examine in this process; return the findings and the forecast."""
    folder.mkdir()
    options = [f"--worker={folder}", "--seconds=600", "--limit-prompts=16"]
    assert command.main([*options, *arguments]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["done"]
    return from_rows(result["findings"]), result["forecast"]


def test_no_false_alarm_on_the_quickstart(tmp_path: Path) -> None:
    """The forecast's checkpoint has the size of the run's, and the run's directory is not touched."""
    root = tmp_path / "run"
    arguments = [
        *(f"--config={CONFIGS / 'quickstart.yaml'}", f"--trainer.default_root_dir={root}"),
        *("--data.train.size=64", "--data.val.held_out.size=400", "--data.test=null", "--data.prompts_per_rollout=4"),
    ]
    findings, forecast = examined(tmp_path / "doctor", arguments)
    assert [finding for finding in findings if finding.severity in (Severity.ERROR, Severity.WARNING)] == []
    assert exit_code(findings) == 0
    assert not root.exists()
    assert {"solve_rate", "zero_variance", "truncation", "eos_emitted", "time", "memory", "disk"} <= {
        finding.check for finding in findings if finding.severity is Severity.OK
    }
    assert forecast["measured"]
    assert set(forecast["phases"]) == {"rollout", "reward", "old_logprobs", "update"}
    limited = ["--data.num_rollouts=1", "--data.val=null", "--trainer.num_sanity_val_steps=0"]
    keep = json.dumps([{"class_path": "RolloutCheckpoint"}])
    command_line(["fit", *arguments, *limited, f"--trainer.callbacks={keep}", "--trainer.enable_progress_bar=false"])
    (checkpoint,) = (root / "checkpoints").iterdir()
    assert forecast["checkpoint_bytes"] == pytest.approx(checkpoint.stat().st_size, rel=0.02)


def test_a_run_full_of_faults(tmp_path: Path, model_folder: Callable[..., Path], problem_file: Path) -> None:
    """Faults that only completions show: none is right, most are cut, and an unlisted id should end them."""
    template = (
        "{% for m in messages %}<s>{{ m['content'] }}<pad>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    model = make_model()
    with torch.no_grad():
        hidden = model.model(torch.arange(3, 40).unsqueeze(0)).last_hidden_state[0].mean(dim=0)
        model.get_input_embeddings().weight[0] = 12.0 * hidden / hidden.square().sum()  # <pad> is sampled often
    root = tmp_path / "run"
    folder = model_folder(chat_template=template, model=model)
    arguments = [
        *(f"--config={CONFIGS / 'base.yaml'}", f"--trainer.default_root_dir={root}", "--trainer.accelerator=cpu"),
        *(f"--model.policy.model_name_or_path={folder}", "--model.group_size=4"),
        *("--model.sampling.max_new_tokens=12", "--model.grader.mode=strict", "--data.prompts_per_rollout=4"),
        *("--data.train=JSONL", f"--data.train.path={problem_file}", "--model.updates_per_rollout=1"),
        "--data.prompt.system_prompt=Put the answer into a box.",
    ]
    findings, _ = examined(tmp_path / "doctor", arguments)
    severities = {(finding.check, finding.severity.value) for finding in findings}
    assert {
        ("solve_rate", "error"),
        ("zero_variance", "error"),
        ("updates_per_rollout", "warning"),
        ("eos", "warning"),
        ("eos_emitted", "error"),
    } <= severities
    assert severities & {("truncation", "warning"), ("truncation", "error")}
    errors = [finding.measured for finding in findings if finding.severity is Severity.ERROR]
    assert sum("'<pad>' (0) occurs in" in text for text in errors) == 1
    assert exit_code(findings) == 4
    assert not root.exists()


def test_settings_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, with its worker process."""
    assert command.main([f"--config={CONFIGS / 'base.yaml'}", "--model.groupsize=4"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert "group_size" in errors
    assert command.main([]) == 2
    assert command.main(["--seconds=0", "--config=x.yaml"]) == 2
