"""The doctor's probe: its plan and arithmetic by hand, and a whole examination of real runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.cli import doctor as script
from lightning_pspo.cli.main import main as command_line
from lightning_pspo.preflight.doctor.findings import Finding, Severity, exit_code, from_rows
from lightning_pspo.preflight.doctor.forecast import Length, forecast, grown, line
from lightning_pspo.preflight.doctor.planning import WHOLE_STEPS, Step, next_size
from tests.support.models import make_model

CONFIGS = Path(__file__).parents[3] / "configs"
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    known = logging.getLogger("lightning.pytorch")
    level, threads = known.level, torch.get_num_threads()
    yield
    known.setLevel(level)
    torch.set_num_threads(threads)


@given(
    whole=st.integers(1, 300),
    fixed=st.floats(0.0, 5.0),
    each=st.floats(0.001, 5.0),
    budget=st.floats(1.0, 60.0),
    sample=st.integers(1, 200),
)
def test_the_plan_ends_in_time(whole: int, fixed: float, each: float, budget: float, sample: int) -> None:
    """After two small rollouts, which are the least, no rollout begins that would take more than what is left."""
    done: list[Step] = []
    left = budget
    while size := next_size(done, whole, sample, left):
        assert 1 <= size <= whole
        expected = size * done[-1].seconds / done[-1].prompts if done else 0.0
        assert len(done) < 2 or expected <= left * 1.0001
        done.append(Step(size, 10 * size, fixed + each * size))
        left -= done[-1].seconds
        assert len(done) <= 24
    assert len(done) >= 2
    if sum(fixed + each * size for size in (min(2, whole), *[whole] * 5)) < budget / 4 and sample <= whole:
        assert sum(step.prompts == whole for step in done) >= WHOLE_STEPS


def test_a_line_through_smaller_rollouts() -> None:
    steps = [Step(2, 0, 9.0), Step(4, 0, 3.0, {"update": 2.0}), Step(8, 0, 5.0, {"update": 4.0})]
    length = Length(prompts=16, rollouts=10, validations=2.0, problems=30, checkpoints=3)
    costs = {"start": 5.0, "end": 1.0, "checkpoint": 2.0, "validated": 0.1}
    found = forecast(steps, length, [100.0], costs)
    assert not found.measured
    assert found.rollout_s == pytest.approx(1.0 + 0.5 * 16)  # the first rollout warms up
    assert found.phases == {"update": pytest.approx(8.0)}
    assert found.validation_s == pytest.approx(3.0)
    assert found.run_s == pytest.approx(10 * 9.0 + 2 * 3.0 + 3 * 2.0 + 5.0 + 1.0)
    steps = [Step(n, 0, 1.0, peaks_mib={"update": 100.0 + n}, passed_tokens=100 * n) for n in (1, 2, 4)]
    assert grown(steps, replace(length, pass_tokens=400)) == 104.0  # the largest pass is full
    assert grown(steps, replace(length, pass_tokens=800)) == 108.0
    assert grown(steps, replace(length, pass_tokens=800, minibatches=4)) == 116.0  # 1600 / 4 tokens
    known = [Step(n, 0, 1.0, {}, {"reward": 90.0, "update": 100.0 + n}, 100 * n) for n in (2, 4)]
    assert grown(known, replace(length, pass_tokens=1600)) == 116.0  # the line; in proportion it would be 146
    jumped = [Step(n, 0, 1.0, {}, {"reward": 90.0, "update": 60.0 + 10 * n}, 100 * n) for n in (2, 4)]
    assert grown(jumped, replace(length, pass_tokens=1600)) == 130.0  # 90 + 10 * 4; the line says 220
    assert line([4.0, 8.0], [5.0, 3.0], 16.0) == 4.0  # no slope below 0


def test_rollouts_of_the_runs_own_size_are_the_forecast() -> None:
    peaks = [{"rollout": 50.0, "update": 80.0}, {"rollout": 55.0, "update": 90.0}]
    steps = [Step(2, 0, 9.0, {}, peaks[0]), *(Step(4, 0, seconds, {}, peaks[1]) for seconds in (2.0, 3.0, 4.0, 40.0))]
    length = Length(prompts=4, rollouts=100, validations=0.0, problems=0, checkpoints=0)
    found = forecast(steps, length, [85.0], dict.fromkeys(("start", "end", "checkpoint", "validated"), 0.0))
    assert (found.measured, found.rollout_s, found.peak_mib) == (True, 3.0, 90.0)  # 40 s are another program's


def examined(folder: Path, arguments: list[str], seconds: int) -> tuple[list[Finding], dict[str, Any]]:
    """Examine in this process; return the findings and the forecast."""
    folder.mkdir()
    options = [f"--worker={folder}", f"--seconds={seconds}", "--limit-prompts=16"]
    assert script.main([*options, *arguments]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["done"]
    return from_rows(result["findings"]), result["forecast"]


def test_no_false_alarm_on_the_quickstart(tmp_path: Path) -> None:
    """And the forecast's memory and checkpoint are those of the run, whose directory it leaves alone."""
    root = tmp_path / "run"
    arguments = [
        *(f"--config={CONFIGS / 'quickstart.yaml'}", f"--trainer.default_root_dir={root}"),
        *("--data.train.size=64", "--data.val.held_out.size=400", "--data.test=null", "--data.prompts_per_rollout=8"),
    ]
    findings, found = examined(tmp_path / "doctor", arguments, seconds=15)
    assert [one for one in findings if one.severity in (Severity.ERROR, Severity.WARNING)] == []
    assert exit_code(findings) == 0
    assert not root.exists()
    assert {"solve_rate", "zero_variance", "truncation", "eos_emitted", "time", "memory", "disk"} <= {
        one.check for one in findings if one.severity is Severity.OK
    }
    assert found["measured"]
    assert set(found["phases"]) == {"rollout", "reward", "old_logprobs", "update"}
    limited = ["--data.num_rollouts=1", "--data.val=null", "--trainer.num_sanity_val_steps=0"]
    keep = json.dumps([{"class_path": "RolloutCheckpoint"}])
    command_line(["fit", *arguments, *limited, f"--trainer.callbacks={keep}", "--trainer.enable_progress_bar=false"])
    (checkpoint,) = (root / "checkpoints").iterdir()
    assert found["checkpoint_bytes"] == pytest.approx(checkpoint.stat().st_size, rel=0.02)


def test_a_run_full_of_faults(tmp_path: Path, model_folder: Callable[..., Path], problem_file: Path) -> None:
    """What only completions show: a model that knows nothing, is cut short, and ends with an id that nobody named."""
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
        "--data.system_prompt=Put the answer into a box.",
    ]
    findings, _ = examined(tmp_path / "doctor", arguments, seconds=10)
    found = {(one.check, one.severity.value) for one in findings}
    assert {
        ("solve_rate", "error"),
        ("zero_variance", "error"),
        ("updates_per_rollout", "warning"),
        ("eos", "warning"),
        ("eos_emitted", "error"),
    } <= found
    assert found & {("truncation", "warning"), ("truncation", "error")}
    (stray,) = [one for one in findings if one.check == "eos_emitted" and one.severity is Severity.ERROR]
    assert "'<pad>' (0) stands in" in stray.measured
    assert exit_code(findings) == 4
    assert not root.exists()


def test_settings_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, as a user calls it."""
    assert script.main([f"--config={CONFIGS / 'base.yaml'}", "--model.groupsize=4"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert "group_size" in errors
    assert script.main([]) == 2
    assert script.main(["--seconds=0", "--config=x.yaml"]) == 2
