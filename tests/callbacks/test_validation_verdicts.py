"""ValidationVerdicts over rollouts that are made by hand."""

import json
from pathlib import Path

import pytest
from lightning_pspo.callbacks import RolloutCheckpoint, ValidationVerdicts

from tests.support.hand_made import HandMade, fit


def parts() -> list:
    return [ValidationVerdicts(), RolloutCheckpoint(every_n_rollouts=2)]


def verdicts(root: Path, rollout: int) -> list[str]:
    lines = (root / f"validations/rollout={rollout:06d}.jsonl").read_text().splitlines()
    return [row["verdict"] for row in map(json.loads, lines) if row["temperature"] > 0.0]


def test_every_valid_problem_before_and_after(tmp_path):
    fit(tmp_path, parts())
    names = [path.name for path in sorted((tmp_path / "validations").iterdir())]
    assert names == ["rollout=000000.jsonl", "rollout=000004.jsonl"]
    # Both batches hold the first problem; the second problem is a repeated row.
    assert verdicts(tmp_path, 0) == ["wrong"] * 2
    assert verdicts(tmp_path, 4) == ["correct"] * 2
    rows = [json.loads(line) for line in (tmp_path / "validations" / names[1]).read_text().splitlines()]
    assert [(row["id"], row["temperature"], row["sample"]) for row in rows] == [("p0", 0.0, 0)] * 2 + [
        ("p0", 1.0, 0)
    ] * 2
    assert all("completion" not in row for row in rows)


def test_a_validation_lost_after_the_last_rollout_is_made_up_for(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, parts(), module=HandMade(crash_in="validation"))
    assert not (tmp_path / "validations/rollout=000004.jsonl").exists()
    trainer = fit(tmp_path, parts(), ckpt_path=tmp_path / "checkpoints/rollout=000004.ckpt")
    assert trainer.global_step == 4
    assert verdicts(tmp_path, 4) == ["correct"] * 2
