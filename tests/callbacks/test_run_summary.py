"""RunSummary over rollouts that are made by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_pspo.callbacks import RolloutCheckpoint, RunSummary, _summary_figures

from lightning_pspo.errors import InputError
from tests.support.hand_made import HandMade, fit


def summary_parts() -> list:
    return [RunSummary(source="held_out", examples=3), RolloutCheckpoint(every_n_rollouts=2)]


def summary_of(root: Path) -> dict:
    return json.loads((root / "summary.json").read_text())


def test_the_summary_has_the_numbers_before_and_after(tmp_path, capsys):
    fit(tmp_path, summary_parts())
    summary = summary_of(tmp_path)
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.0, 0.8)
    assert summary["interval_before"] == pytest.approx([0.0, 0.2775], abs=1e-4)  # Wilson, 0 of 10
    assert summary["interval_after"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson, 8 of 10
    assert (summary["greedy_accuracy_before"], summary["greedy_accuracy_after"]) == (0.9, 0.9)
    assert (summary["n"], summary["seed"], summary["rollouts"], summary["source"]) == (10, 7, 4, "held_out")
    # The second problem is a repeated row; the second batch repeats the first problem.
    assert [row["id"] for row in summary["samples_before"]] == ["p0", "p0"]
    assert {row["verdict"] for row in summary["samples_before"]} == {"wrong"}
    assert {row["completion"] for row in summary["samples_after"]} == {"after=True"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "80.0% [49.0, 94.3]" in printed
    assert "after=False" in printed


def test_a_completion_cannot_control_the_terminal():
    row = {
        "id": "a",
        "question": "1\x1b[2J?",
        "answer": "2",
        "completion": "\x1b]0;t\x07\n#### 2",
        "verdict": "correct",
    }
    table = _summary_figures.examples_table({"samples_before": [row], "samples_after": [row]})
    cells = [next(iter(column.cells)).plain for column in table.columns]
    assert cells == ["1␛[2J?\n\nanswer: 2", *["␛]0;t␇\n#### 2\n\ncorrect"] * 2]


def test_no_panel_repeats_another_and_none_is_empty(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(_summary_figures, "_label", lambda axes, title, unit: titles.append(title))
    values, nothing = [0.25, 0.5], [math.nan] * 2
    curves = {"rollout": [1, 2], "accuracy": values, "reward": values, "length": [3.0, 4.0], "entropy": nothing}
    curves |= {"ratio_p01": [0.9, 0.8], "ratio_p99": [1.1, 1.2], "ratio_max": [1.5, 3.0]}
    measured = dict.fromkeys(("accuracy_before", "accuracy_after"), 0.5)
    measured |= {key: [0.4, 0.6] for key in ("interval_before", "interval_after")}
    summary = {**measured, "rollouts": 2, "source": "held_out", "temperature": 1.0}
    assert _summary_figures.draw_curves(curves, summary).startswith(b"\x89PNG")
    assert titles == ["Accuracy", "Completion length", "Probability ratio"]
    assert _summary_figures.draw_curves(curves | {"reward": [1.0, 2.0]}, summary)
    assert titles[3:] == ["Accuracy", "Training reward", "Completion length", "Probability ratio"]


def test_a_resumed_run_still_knows_what_was_before(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, summary_parts(), module=HandMade(crash_in="rollout 4"))
    assert not (tmp_path / "summary.json").exists()
    path = tmp_path / "checkpoints/rollout=000002.ckpt"
    state = torch.load(path, weights_only=True)  # primitives only
    state["callbacks"]["RunSummary"]["seconds"] += 1000.0
    torch.save(state, path)
    fit(tmp_path, summary_parts(), ckpt_path=path)
    summary = summary_of(tmp_path)
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.0, 0.8)
    assert summary["samples_before"][0]["completion"] == "after=False"
    assert 1000.0 < summary["seconds"] < 1100.0
    last = torch.load(tmp_path / "checkpoints/rollout=000004.ckpt", weights_only=True)
    curves = last["callbacks"]["RunSummary"]["curves"]
    assert curves["rollout"] == [1, 2, 3, 4]
    assert curves["ratio_p99"] == pytest.approx([1.5] * 4, rel=0.005)


def test_a_measurement_lost_after_the_last_rollout_is_made_up_for(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, summary_parts(), module=HandMade(crash_in="validation"))
    assert not (tmp_path / "summary.json").exists()
    trainer = fit(tmp_path, summary_parts(), ckpt_path=tmp_path / "checkpoints/rollout=000004.ckpt")
    assert trainer.global_step == 4
    assert summary_of(tmp_path)["rollouts"] == 4
    assert summary_of(tmp_path)["accuracy_after"] == 0.8
    assert summary_of(tmp_path)["samples_after"][0]["completion"] == "after=True"


def test_a_run_without_its_last_measurement_gets_no_summary(tmp_path):
    with pytest.warns(UserWarning, match="no evaluation after the last rollout"):
        fit(tmp_path, summary_parts(), val_check_interval=3)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("settings", [{"num_sanity_val_steps": 2}, {"limit_val_batches": 0}])
def test_a_run_without_a_first_measurement_says_so_and_gets_no_summary(tmp_path, settings):
    with pytest.warns(UserWarning, match="no summary.json: nothing was measured before training"):
        fit(tmp_path, [RunSummary()], **settings)
    assert not (tmp_path / "summary.json").exists()


def test_a_run_without_sources_is_not_told_that_it_needs_some(recwarn):
    settings = SimpleNamespace(limit_val_batches=1.0, num_sanity_val_steps=-1, datamodule=SimpleNamespace(val={}))
    RunSummary().on_train_start(settings, None)
    assert not recwarn.list


def test_a_source_that_is_not_evaluated_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one of \['held_out'\], got 'other'"):
        fit(tmp_path, [RunSummary(source="other")])
